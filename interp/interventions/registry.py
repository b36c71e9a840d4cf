"""Every method by name, and the short notation for its parameters: `vhr:alpha=1.5:seed=3`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from interp import plugins
from interp.interventions.base import Method, Parameter
from interp.interventions.methods.avisc import AvisC
from interp.interventions.methods.deco import DeCo
from interp.interventions.methods.decoding import Beams, Greedy, Sampling, StopBias
from interp.interventions.methods.direction import AddDirection
from interp.interventions.methods.dola import DoLa
from interp.interventions.methods.fastv import FastV
from interp.interventions.methods.h2o import H2O
from interp.interventions.methods.head_edits import EditHeads
from interp.interventions.methods.icd import ICD
from interp.interventions.methods.m3id import M3ID
from interp.interventions.methods.opera import OPERA
from interp.interventions.methods.pai import PAI
from interp.interventions.methods.snapkv import SnapKV
from interp.interventions.methods.spin import SPIN
from interp.interventions.methods.streaming_llm import StreamingLLM
from interp.interventions.methods.top_k import TopK
from interp.interventions.methods.vasparse import VASparse
from interp.interventions.methods.vcd import VCD
from interp.interventions.methods.vhr import VHR
from interp.plugins import brought, registered, split_path

LONGEST = 230
"""Characters of a method's name with its settings: files and table rows are named after it."""


@dataclass(frozen=True)
class Entry:
    """A method as it is registered: its class, what is fixed, and one line if the class's own does not say it."""

    build: type[Method]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    line: str = ""

    def __call__(self, **settings: Any) -> Method:
        """The method, with its defaults, or those of its preset, unless told otherwise."""
        chosen = dict(self.fixed) | settings
        if self.build.presets and "preset" in chosen:
            return self.build.of_preset(chosen.pop("preset"), **chosen)
        return self.build(**chosen)

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The settings that can be given."""
        return {name: p for name, p in self.build.parameters().items() if name not in self.fixed}

    @property
    def summary(self) -> str:
        """What it does, in a line."""
        return self.line or re.split(r"\.\s|\.$|: ", self.build.__doc__ or "")[0]


METHODS: dict[str, Entry] = {
    "greedy": Entry(Greedy),
    "beams": Entry(Beams),
    "sampling": Entry(Sampling),
    "stop-bias": Entry(StopBias),
    "vhr": Entry(VHR),
    "random-heads": Entry(
        VHR, {"choice": "random"}, "Control of VHR: in each layer as many heads, drawn once and the same for all images"
    ),
    "bottom-heads": Entry(
        VHR, {"choice": "bottom"}, "Control of VHR: in each layer as many heads, those that the picture moves least"
    ),
    "all-heads": Entry(VHR, {"choice": "all", "others": 1.0}, "Control of VHR: all heads of its layers"),
    "edit": Entry(EditHeads),
    "vasparse": Entry(VASparse),
    "vcd": Entry(VCD),
    "icd": Entry(ICD),
    "avisc": Entry(AvisC),
    "m3id": Entry(M3ID),
    "pai": Entry(PAI),
    "dola": Entry(DoLa),
    "deco": Entry(DeCo),
    "spin": Entry(SPIN),
    "opera": Entry(OPERA),
    "top-k": Entry(TopK),
    "fastv": Entry(FastV),
    "streaming-llm": Entry(StreamingLLM),
    "h2o": Entry(H2O),
    "snapkv": Entry(SnapKV),
    "direction": Entry(AddDirection),
}


def entry_of(name: str) -> Entry:
    """A method by its name here, the name that a package registers (`interp.methods`), or `package.module:Class`."""
    if name in METHODS:
        return METHODS[name]
    own = brought(plugins.METHODS, name)
    if own is None:
        near = get_close_matches(name, METHODS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        known = ", ".join([*METHODS, *registered(plugins.METHODS)])
        raise ValueError(f"unknown method {name!r}; expected one of {known}, or package.module:Class{hint}")
    if not (isinstance(own, type) and issubclass(own, Method)):
        raise ValueError(f"{name} is no method: expected a class made from interp.interventions.Method, got {own!r}")
    return Entry(own)


def parse_method(text: str) -> Method:
    """Build a method from `name` or `name:parameter=value:...`; ValueError names what is unknown or wrong.

    A name is one of `METHODS`, one that an installed package registers, or `package.module:Class` (`interp.plugins`).
    """
    name, _, rest = text.partition(":")
    if name not in METHODS:
        name, rest = split_path(text)
    settings = rest.split(":") if rest else []
    entry = entry_of(name)
    if len(text) > LONGEST:
        raise ValueError(
            f"a method is written in at most {LONGEST} characters, since files are named after it; got {len(text)} "
            f"({text[:40]}...). Long lists belong in a ranking file, or in Python"
        )
    known = entry.parameters
    if entry.build.presets:
        known |= {"preset": Parameter("preset", str, None, choices=tuple(entry.build.presets))}
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if key not in known or not equals:
            raise ValueError(
                f"method {name!r} has no setting {setting!r}; "
                f"expected parameter=value with one of {', '.join(known) or 'none'}"
            )
        if key in values:
            raise ValueError(f"method {name!r}: {key} is given twice in {text!r}")
        values[key] = known[key].read(entry.build.__name__, value)
        known[key].refuse(entry.build.__name__, values[key])
    return entry(**values)


def written(name: str) -> str:
    """A registered method with all its default settings, as `parse_method` takes it."""
    settings = [f"{p.name}={p.shown(p.default)}" for p in METHODS[name].parameters.values()]
    return ":".join([name, *settings])


def describe_methods() -> str:
    """Every method with its parameters and defaults, its citation, its cost, and the setting that changes nothing."""
    lines = []
    for name, entry in METHODS.items():
        build = entry.build
        lines += [written(name).replace(":", "  ", 1).replace(":", " "), f"    {entry.summary}. {build.citation}."]
        lines.append(f"    extra cost: {build.cost}; off: {':'.join([name, build.off]).rstrip(':')}")
        choices = [p for p in entry.parameters.values() if p.choices]
        lines += [f"    {p.name}: {', '.join(p.choices)}" for p in choices]
        for preset, found in build.presets.items():
            shown = " ".join(f"{key}={build.parameters()[key].shown(value)}" for key, value in found.settings.items())
            lines.append(f"    preset={preset}: {shown or 'the defaults'} ({found.source})")
    return "\n".join(lines)
