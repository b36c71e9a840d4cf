"""What happens when two methods are open at once: both act, or the pair is refused; written as a table.

    python -m interp.experiments.combinations > figures/combinations.md

A method acts if the scores of the first steps, after everything that changes them, are not those of the other method
alone.  Greedy is left out: it changes nothing, beside whatever else; and so is stop-bias, which changes the end alone,
that these steps rule out.
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor
from transformers import LogitsProcessor

from interp.data import open_data
from interp.evaluate.objects import ObjectParser
from interp.interventions import METHODS, AddDirection, Method, parse_method
from interp.interventions.directions import Direction
from interp.models import LVLM, Inputs, load

STRONG = {
    "beams": "beams:num_beams=2",
    "sampling": "sampling:temperature=10:seed=1",
    "edit": "edit:heads=L1H1+L2H2+L3H3:op=zero",
    "vasparse": "vasparse:keep=0.5:scope=all",
    "m3id": "m3id:gamma=0.5:confidence=1",
    "spin": "spin:suppress=0.5",
    "opera": "opera:num_beams=2:candidates=2",
    "top-k": "top-k:keep=0.05",
    "fastv": "fastv:keep=0.1",
    "streaming-llm": "streaming-llm:window=8",
    "h2o": "h2o:keep=0.1",
    "pai": "pai:alpha=2",
    "deco": "deco:alpha=5",
    "snapkv": "snapkv:keep=0.1:window=8",
}
"""Settings of methods whose defaults may be too weak to be seen in a few steps."""
STEPS = 4


@dataclass(frozen=True)
class Pair:
    """Two methods, and what became of them: `refused` is the reason, `idle` names those that did not act."""

    first: str
    second: str
    refused: str = ""
    idle: tuple[str, ...] = ()

    @property
    def silent(self) -> bool:
        """Whether a method was dropped without a word."""
        return not self.refused and bool(self.idle)


class _Scores(LogitsProcessor):
    """Keeps the scores of every step."""

    def __init__(self) -> None:
        self.found: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.found.append(scores.clone())
        return scores


def scores_with(model: LVLM, inputs: Inputs, methods: Sequence[Method]) -> list[Tensor]:
    """The scores of the first steps with these methods open, in this order."""
    seen = _Scores()
    with ExitStack() as stack:
        for method in methods:
            stack.enter_context(method(model))
        model.generate(inputs, max_new_tokens=STEPS, min_new_tokens=STEPS, logits_processor=[seen])
    return seen.found


def alike(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Whether two lists of scores are the same but for rounding."""
    return len(a) == len(b) and all(
        x.shape == y.shape and torch.allclose(x, y, rtol=1e-4, atol=1e-4) for x, y in zip(a, b, strict=True)
    )


def named_methods(model: LVLM) -> dict[str, Method]:
    """Every method of the registry but greedy and stop-bias, with settings strong enough to be seen."""
    up = Direction(2, torch.randn(model.d_model, generator=torch.Generator().manual_seed(0)))
    given: dict[str, Method] = {"direction": AddDirection(direction=up, strength=3.0)}
    names = (name for name in METHODS if name not in ("greedy", "stop-bias"))
    return {name: given[name] if name in given else parse_method(STRONG.get(name, name)) for name in names}


def pairs(model: LVLM, inputs: Inputs, methods: Mapping[str, Method] | None = None) -> list[Pair]:
    """What happens to every pair of methods."""
    methods = named_methods(model) if methods is None else methods
    alone = {name: scores_with(model, inputs, [method]) for name, method in methods.items()}
    found = []
    for first, second in combinations(methods, 2):
        try:
            both = scores_with(model, inputs, [methods[first], methods[second]])
        except ValueError as error:
            found.append(Pair(first, second, refused=str(error)))
            continue
        idle = tuple(name for name, other in ((first, second), (second, first)) if alike(both, alone[other]))
        found.append(Pair(first, second, idle=idle))
    return found


def markdown(found: Sequence[Pair]) -> str:
    """The table: + where both act, a number where the pair is refused, with the reasons below."""
    names = list(dict.fromkeys(name for pair in found for name in (pair.first, pair.second)))
    reasons = list(dict.fromkeys(pair.refused for pair in found if pair.refused))
    cells = {(p.first, p.second): str(reasons.index(p.refused) + 1) if p.refused else "+" for p in found}
    cells |= {(p.first, p.second): "silent" for p in found if p.silent}
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for row in names:
        marks = (cells.get((row, column), cells.get((column, row), "")) for column in names)
        lines.append(f"| {row} | {' | '.join(marks)} |")
    lines += ["", "`+`: both act. A number: refused, with this message.", ""]
    lines += [f"{i}. {reason}" for i, reason in enumerate(reasons, 1)]
    return "\n".join(lines)


def main() -> None:
    """Print the table for the testbed."""
    model, data = load("testbed"), open_data("testbed:broken", "test", ObjectParser.coco())
    samples = [data.load(i) for i in data.image_ids[:2]]
    inputs = model.inputs([s.image for s in samples], "Please describe this image in detail.")
    sys.stdout.write(markdown(pairs(model, inputs)) + "\n")


if __name__ == "__main__":
    main()
