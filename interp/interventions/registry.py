"""Every method by name, and the short notation for its parameters: `vhr:alpha=1.5:seed=3`."""

import dataclasses
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from interp.interventions.methods.contrast import M3ID, VCD
from interp.interventions.methods.decoding import Beams, Greedy, Sampling
from interp.interventions.methods.edits import EditHeads
from interp.interventions.methods.guidance import PAI, SPIN, DoLa
from interp.interventions.methods.opera import OPERA
from interp.interventions.methods.sparse import H2O, FastV, SnapKV, StreamingLLM, TopK
from interp.interventions.methods.vasparse import VASparse
from interp.interventions.methods.vhr import VHR
from interp.models import LVLM

Method = Callable[[LVLM], AbstractContextManager[Any]]
"""Something to open around `model.generate`."""


METHODS: dict[str, Any] = {
    "greedy": Greedy,
    "beams": Beams,
    "sampling": Sampling,
    "vhr": partial(VHR, choice="vision-aware"),
    "random-heads": partial(VHR, choice="random"),
    "bottom-heads": partial(VHR, choice="bottom"),
    "edit": EditHeads,
    "vasparse": VASparse,
    "vcd": VCD,
    "m3id": M3ID,
    "pai": PAI,
    "dola": DoLa,
    "spin": SPIN,
    "opera": OPERA,
    "top-k": TopK,
    "fastv": FastV,
    "streaming-llm": StreamingLLM,
    "h2o": H2O,
    "snapkv": SnapKV,
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


def describe_methods() -> str:
    """Every method with its parameters and defaults, its citation, its cost, and the setting that changes nothing."""
    lines = []
    for name, build in METHODS.items():
        method: Any = build()
        fixed = build.keywords if isinstance(build, partial) else {}
        fields = [f.name for f in dataclasses.fields(method) if f.name not in fixed]
        settings = " ".join(f"{f}={_shown(getattr(method, f))}" for f in fields)
        summary = re.split(r"\.\s|\.$|: ", type(method).__doc__ or "")[0]
        lines += [f"{name}  {settings}".rstrip(), f"    {summary}. {method.citation}."]
        lines.append(f"    extra cost: {method.cost}; off: {':'.join([name, method.off]).rstrip(':')}")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(str(v) for v in value)
    return "auto" if value is None else str(value)


def _convert(name: str, key: str, value: str, default: Any) -> Any:
    """Read a value as the type of the parameter's default (layers: `1+4+5`)."""
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[value.lower()]
        if default is None:
            return tuple(int(part) for part in value.split("+") if value)
        return type(default)(value)
    except (KeyError, ValueError):
        kind = "numbers joined by +" if default is None else type(default).__name__
        raise ValueError(f"{key} of method {name!r} is a {kind}, got {value!r}") from None
