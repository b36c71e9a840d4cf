"""The operating curve: recall against CHAIR_I of the unchanged model as it says more or less, and who is above it.

A method that says less has fewer hallucinations without seeing better; so does greedy decoding with a bias on the
log-odds of stopping, or on the first tokens of objects' names (a token that other words begin with too is biased for
them as well).  A method helps only where it hallucinates less than that at the same recall.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from interp.attribution.lens import first_tokens
from interp.evaluate.bootstrap import Interval, Statistic, intervals
from interp.interventions import Method, StopBias, TokenBias
from interp.models import LVLM

Knob = Literal["stopping", "naming"]

BIASES = (-8.0, -4.0, -2.0, -1.0, 1.0, 2.0, 4.0, 6.0, 7.0, 8.0, 9.0, 10.0, 12.0)
"""Nats on what is biased, fixed for all models; greedy is the point at 0."""


def points_of(knob: Knob) -> dict[str, float]:
    """The bias of each point of a curve but greedy's, by the name under which it is captioned."""
    return {f"{'stop' if knob == 'stopping' else 'name'}-bias:bias={bias:g}": bias for bias in BIASES}


def methods_of(knob: Knob, model: LVLM, objects: Sequence[str]) -> dict[str, Method]:
    """What captions the points of a curve."""
    if knob == "stopping":
        return {name: StopBias(bias) for name, bias in points_of(knob).items()}
    tokens = tuple(first_tokens(model, objects).ids.unique().tolist())
    return {name: TokenBias(tokens, bias) for name, bias in points_of(knob).items()}


def chair_i_at(recall: Float[np.ndarray, " point"], chair_i: Float[np.ndarray, " point"], at: float) -> float:
    """CHAIR_I of the curve at a recall, straight between swept points; nan outside the curve's recalls.

    Of points with the same recall the one with the lowest CHAIR_I counts: the unchanged model reaches it.
    """
    order = np.lexsort((chair_i, recall))
    x, first = np.unique(recall[order], return_index=True)
    return float(np.interp(at, x, chair_i[order][first], left=np.nan, right=np.nan))


@dataclass(frozen=True)
class Above:
    """By how much CHAIR_I of the curve exceeds a method's at the method's recall (percentage points; above 0: helps).

    `inside` is the share of the resamples in which that recall is on the curve, of which the interval is.
    """

    height: Interval
    inside: float


@dataclass(frozen=True)
class OperatingCurve:
    """The rates at each bias (0: greedy) on the `knob`, and how far methods are above; None where no curve is."""

    knob: Knob
    points: dict[float, dict[str, Interval]]
    above: dict[str, Above | None]

    def as_json(self) -> dict[str, Any]:
        """As it stands in `summary.json`."""
        points = [
            {"bias": bias, **{name: asdict(v) for name, v in rates.items()}} for bias, rates in self.points.items()
        ]
        above = {
            name: None if a is None else {**asdict(a.height), "resamples_inside": a.inside}
            for name, a in self.above.items()
        }
        return {"bias_on": self.knob, "points": points, "chair_i_below_curve_at_same_recall": above}


def operating_curve(
    knob: Knob,
    curve: Mapping[float, Float[np.ndarray, "image column"]],
    methods: Mapping[str, Float[np.ndarray, "image column"]],
    rates: Statistic,
    seed: int = 0,
) -> OperatingCurve:
    """The curve and the methods' heights above it, with bootstrap intervals over the same images for all.

    Rows are images, columns what `rates` makes `recall` and `chair_i` (percent) of.
    """
    biases = sorted(curve)
    stacked = np.hstack([*(curve[b] for b in biases), *methods.values()])
    width = stacked.shape[1] // (len(biases) + len(methods))

    def heights(totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
        each = [rates(totals[..., i : i + width], n) for i in range(0, stacked.shape[1], width)]
        recall, chair_i = (np.stack([e[name] for e in each], -1) for name in ("recall", "chair_i"))
        k = len(biases)
        found = {}
        for i, name in enumerate(methods, k):
            rows = zip(recall.reshape(-1, recall.shape[-1]), chair_i.reshape(-1, chair_i.shape[-1]), strict=True)
            height = [chair_i_at(x[:k], y[:k], x[i]) - y[i] for x, y in rows]
            found[name] = np.reshape(height, recall.shape[:-1])
        return found

    points = {b: intervals(curve[b], rates, seed=seed) for b in biases}
    return OperatingCurve(knob, points, _above(stacked, heights, seed))


def _above(stacked: np.ndarray, heights: Statistic, seed: int, resamples: int = 2000) -> dict[str, Above | None]:
    rng, n = np.random.default_rng(seed), len(stacked)
    drawn = heights(rng.multinomial(n, np.full(n, 1 / n), size=resamples) @ stacked, n)
    found: dict[str, Above | None] = {}
    for name, value in heights(stacked.sum(0), n).items():
        inside = drawn[name][np.isfinite(drawn[name])]
        if not np.isfinite(value) or not len(inside):
            found[name] = None
            continue
        low, high = np.percentile(inside, [2.5, 97.5])
        found[name] = Above(Interval(float(value), float(low), float(high)), len(inside) / resamples)
    return found


def rows_of(curve: OperatingCurve, cell: Any) -> tuple[list[list[str]], list[list[str]]]:
    """The table of the curve's points, and that of the methods' heights; `cell` writes an interval."""
    points = [[f"bias on {curve.knob}", "recall", "CHAIR_I", "length"]]
    for bias, rates in curve.points.items():
        points.append(
            [f"{bias:+g}" if bias else "0 (greedy)", *(cell(rates[c]) for c in ("recall", "chair_i", "length"))]
        )
    heights = [["method", "CHAIR_I below the curve at the same recall", "resamples on the curve"]]
    for name, above in curve.above.items():
        shown = ["-", "-"] if above is None else [cell(above.height, signed=True), f"{100 * above.inside:.0f} %"]
        heights.append([name, *shown])
    return points, heights
