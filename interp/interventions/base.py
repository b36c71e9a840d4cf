"""What every method is: a small dataclass whose fields are its settings, opened around `model.generate`.

    with VHR(alpha=2.0)(model) as steered:
        model.generate(inputs)
    steered.heads  # what it chose, batch by batch

A setting's type, range and choices stand in its annotation, and nowhere else: construction, the short notation
(`vhr:alpha=1.5`), `interp methods` and `check` read them there.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from interp.models import LVLM, GenerateOptions, Inputs, Steered


@dataclass(frozen=True)
class Within:
    """The range of a number; `above`: its lower end is left out."""

    low: float
    high: float
    above: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number lies in the range; nan does not."""
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        return f"{'above' if self.above else 'of at least'} {self.low:g} and at most {self.high:g}"


class _Layer:
    """Marks numbers of layers, which `check` compares with the model."""


LAYER = _Layer()
Weight = Annotated[float, Within(0, 1000)]
"""How strongly something acts; 0: not at all.  Beyond a thousand nothing is left of the model's own scores."""
Share = Annotated[float, Within(0, 1)]
Kept = Annotated[float, Within(0, 1, above=True)]
"""The share that stays."""
Count = Annotated[int, Within(1, 100_000)]
Seed = Annotated[int, Within(0, 2**32 - 1)]
Layers = Annotated[tuple[int, ...] | None, LAYER]
"""Numbers of layers; None: the method's own choice for the model."""


@dataclass(frozen=True)
class Parameter:
    """A setting of a method, as its field declares it."""

    name: str
    kind: type
    default: Any
    optional: bool = False
    choices: tuple[str, ...] = ()
    range: Within | None = None
    layer: bool = False

    @classmethod
    def of(cls, name: str, hint: Any, default: Any) -> "Parameter":
        """Read a type hint: int, float, bool, str, Literal or tuple[int, ...], with None and Annotated around it."""
        marks: tuple[Any, ...] = ()
        if get_origin(hint) is Annotated:
            hint, *more = get_args(hint)
            marks = tuple(more)
        kinds = [h for h in get_args(hint) if h is not type(None)] if type(None) in get_args(hint) else [hint]
        kind, choices = kinds[0], ()
        if get_origin(kind) is Literal:
            kind, choices = str, get_args(kind)
        within = next((m for m in marks if isinstance(m, Within)), None)
        optional = type(None) in get_args(hint)
        return cls(name, get_origin(kind) or kind, default, optional, choices, within, LAYER in marks)

    def __str__(self) -> str:
        if self.choices:
            what = f"one of {', '.join(self.choices)}"
        elif self.kind is bool:
            what = "true or false"
        elif self.kind is tuple:
            what = "numbers joined by +"
        else:
            what = {int: "a whole number", float: "a number", str: "a text"}[self.kind]
            what += f" {self.range}" if self.range is not None else ""
        return f"{what}, or auto" if self.optional else what

    def refuse(self, method: str, value: Any) -> None:
        """ValueError unless a value is of the kind, finite, and in range."""
        number: Any = value
        fits = (
            (value is None and self.optional)
            or (self.kind is float and isinstance(value, int | float) and not isinstance(value, bool))
            or (self.kind is int and isinstance(value, int) and not isinstance(value, bool))
            or (self.kind in (bool, str) and isinstance(value, self.kind))
            or (self.kind is tuple and isinstance(value, tuple) and all(type(v) is int for v in value))
        )
        if fits and self.kind in (int, float) and value is not None:
            fits = math.isfinite(number) and (self.range is None or self.range.holds(number))
        if not fits or (self.choices and value not in self.choices):
            raise ValueError(f"{self.name} of {method} is {self}, got {value!r}")

    def read(self, method: str, text: str) -> Any:
        """A value from the short notation; ValueError if it is none."""
        try:
            if self.optional and text == "auto":
                return None
            if self.kind is bool:
                return {"true": True, "false": False}[text.lower()]
            if self.kind is tuple:
                return tuple(int(part) for part in text.split("+") if part)
            return self.kind(text)
        except (KeyError, ValueError):
            raise ValueError(f"{self.name} of {method} is {self}, got {text!r}") from None

    def shown(self, value: Any) -> str:
        """A value in the short notation, as `read` takes it."""
        if value is None:
            return "auto"
        if self.kind is tuple:
            return "+".join(str(v) for v in value)
        return str(value).lower() if self.kind is bool else str(value)


@dataclass(frozen=True)
class Preset:
    """Settings that a paper, or its authors' scripts, gave a method for a model, and where they stand.

    A source marked [recalled] was not read again: check it before you print it.
    """

    settings: Mapping[str, Any]
    source: str


@dataclass(frozen=True)
class Method(ABC):
    """Something that changes what a model writes.

    `citation` is its source, `cost` what it takes beside greedy decoding, `off` the settings that change nothing.
    `passes` are the forward passes on which it acts, by their name in `interp.models.PASSES`, each with the reason; a
    pass that is not named runs as if the method were not open.
    """

    citation: ClassVar[str]
    cost: ClassVar[str]
    off: ClassVar[str]
    passes: ClassVar[Mapping[str, str]]
    presets: ClassVar[Mapping[str, Preset]] = {}
    """Settings by name, taken with `preset=NAME`; what is given beside it counts more."""
    needs_vision: ClassVar[bool] = False
    """Whether it does something with pictures, so that a plain language model has no use for it."""

    def __post_init__(self) -> None:
        for name, parameter in self.parameters().items():
            parameter.refuse(type(self).__name__, getattr(self, name))

    @classmethod
    @cache
    def parameters(cls) -> Mapping[str, Parameter]:
        """The settings by name, in the order of the fields."""
        hints = get_type_hints(cls, include_extras=True)
        found = [f for f in fields(cls) if f.default is not MISSING]
        return {f.name: Parameter.of(f.name, hints[f.name], f.default) for f in found}

    @classmethod
    def of_preset(cls, name: str, **settings: Any) -> "Method":
        """The method with the settings of a preset, but for those that are given; ValueError if there is none."""
        if name not in cls.presets:
            known = f"one of {', '.join(cls.presets)}" if cls.presets else "none: it has no presets"
            raise ValueError(f"preset of {cls.__name__} is {known}, got {name!r}")
        return cls(**(dict(cls.presets[name].settings) | settings))

    def _refuse_idle(self, acting: bool, what: str, *names: str) -> None:
        """ValueError where settings are given (not None) that do not act with the others."""
        idle = [name for name in names if getattr(self, name) is not None]
        if idle and not acting:
            raise ValueError(f"{', '.join(idle)} of {type(self).__name__} acts with {what} only; leave it out")

    def check(self, model: LVLM) -> None:
        """ValueError for settings that this model refuses; nothing runs."""
        name = type(self).__name__
        if self.needs_vision and not model.family.has_vision:
            raise ValueError(f"{name} works with pictures, and {model.name} is a plain language model")
        for p in (p for p in self.parameters().values() if p.layer):
            value = getattr(self, p.name)
            layers = value if isinstance(value, tuple) else () if value is None else (value,)
            wrong = [layer for layer in layers if not 0 <= layer < model.n_layers]
            if wrong:
                shown = ", ".join(map(str, wrong))
                raise ValueError(
                    f"{p.name} of {name}: layers are between 0 and {model.n_layers - 1} in this model, got {shown}"
                )

    @abstractmethod
    def steer(self, model: LVLM, inputs: Inputs) -> AbstractContextManager[GenerateOptions]:
        """While open, the model is changed for one batch; yields what `generate` is to be given."""

    @contextmanager
    def __call__(self, model: LVLM) -> Iterator[Steered]:
        """Steer `model.generate` while open; yields where the method leaves what it chooses.

        Raises ValueError for settings that this model refuses, or where another thread has the model.
        """
        self.check(model)
        with model.steered(self) as steered:
            yield steered
