"""Methods that are compared on the same items: parsed, named, and checked against the model before anything runs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from interp.experiments.config import ExperimentConfig
from interp.experiments.manifest import content_digest
from interp.interventions import EditHeads, Method, parse_method
from interp.models import LVLM

BASELINE = "greedy"
"""What every method is compared with."""


@dataclass(frozen=True)
class ComparisonConfig(ExperimentConfig):
    """Settings of an experiment that compares methods."""

    methods: str = "greedy,vhr,random-heads,bottom-heads"
    """Comma-separated methods; parameters follow a colon, as in vhr:alpha=1.5."""
    ranking: str | None = None
    """heads.npz of `interp causal`, for edits that choose heads: edit:heads=top:share=0.1:by=vhd."""

    def __post_init__(self) -> None:
        names = [m.strip() for m in self.methods.split(",")]
        if len(set(names)) != len(names):
            raise ValueError(f"each method can be named once, got {self.methods!r}")
        for name in names:
            parse_method(name)

    @property
    def compared(self) -> dict[str, Method]:
        """The methods by name; greedy comes first, because the others are compared with it."""
        methods: dict[str, Method] = {}
        for text in dict.fromkeys([BASELINE, *(m.strip() for m in self.methods.split(","))]):
            method, name = parse_method(text), method_name(text)
            if name in methods:
                raise ValueError(f"each method can be named once, got {name} twice in {self.methods!r}")
            if isinstance(method, EditHeads) and self.ranking and not method.ranking:
                method = replace(method, ranking=self.ranking)
            methods[name] = method
        return methods


def method_name(text: str) -> str:
    """The name of a method in records: as it is written, but for a ranking's file, which goes by its content."""
    parts = [part.partition("=") for part in text.split(":")]
    return ":".join(
        f"{key}={content_digest(Path(value))[:8]}" if key == "ranking" and value else f"{key}{equals}{value}"
        for key, equals, value in parts
    )


def described(methods: Mapping[str, Method]) -> dict[str, str]:
    """Every setting of every method, for a manifest; a ranking's file goes by its content, so that it may be moved."""
    found = {}
    for name, method in methods.items():
        ranking: Any = getattr(method, "ranking", "")
        digest = f"sha256:{content_digest(Path(ranking))}" if ranking else ""
        found[name] = repr(method).replace(f"ranking={ranking!r}", f"ranking={digest!r}")
    return found


def check_methods(model: LVLM, methods: Mapping[str, Method]) -> None:
    """ValueError if a method has settings that do not fit this model."""
    for method in methods.values():
        method.check(model)


def least_rows(methods: Mapping[str, Method]) -> dict[str, int]:
    """The methods that need more than one row in a batch, and how many."""
    each: dict[str, int] = {name: getattr(method, "least_rows", 1) for name, method in methods.items()}
    return {name: n for name, n in each.items() if n > 1}
