"""Every method by name, and the short notation for its parameters: `vhr:alpha=1.5:seed=3`."""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from interp.interventions.vhr import VHR
from interp.models import LVLM

Method = Callable[[LVLM], AbstractContextManager[Any]]
"""Something to open around `model.generate`."""


@dataclasses.dataclass(frozen=True)
class Greedy:
    """Plain greedy generation, the baseline of every comparison."""

    def __call__(self, model: LVLM) -> AbstractContextManager[None]:
        """Change nothing."""
        return nullcontext()


METHODS: dict[str, Any] = {
    "greedy": Greedy,
    "vhr": partial(VHR, choice="vision-aware"),
    "random-heads": partial(VHR, choice="random"),
    "bottom-heads": partial(VHR, choice="bottom"),
}


def parse_method(text: str) -> Method:
    """Build a method from `name` or `name:parameter=value:...`; ValueError names what is unknown or wrong."""
    name, *settings = text.split(":")
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; expected one of {', '.join(METHODS)}")
    default: Any = METHODS[name]()
    fixed = METHODS[name].keywords if isinstance(METHODS[name], partial) else {}
    fields = {f.name: getattr(default, f.name) for f in dataclasses.fields(default) if f.name not in fixed}
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if key not in fields or not equals:
            raise ValueError(
                f"method {name!r} has no setting {setting!r}; "
                f"expected parameter=value with one of {', '.join(fields) or 'none'}"
            )
        values[key] = _convert(name, key, value, fields[key])
    return dataclasses.replace(default, **values)


def _convert(name: str, key: str, value: str, default: Any) -> Any:
    """Read a value as the type of the parameter's default (layers: `1+4+5`)."""
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[value.lower()]
        if default is None:
            return tuple(int(part) for part in value.split("+"))
        return type(default)(value)
    except (KeyError, ValueError):
        kind = "numbers joined by +" if default is None else type(default).__name__
        raise ValueError(f"{key} of method {name!r} is a {kind}, got {value!r}") from None
