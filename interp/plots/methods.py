"""Methods against each other: trade-offs with their Pareto front, an operating curve, controls, method by organism."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from interp.evaluate.bootstrap import Interval
from interp.plots.heads import heat_map
from interp.plots.names import readable, settings_of
from interp.plots.placing import label_points
from interp.plots.style import (
    CORRECT,
    HALLUCINATED,
    SHARE,
    WIDE,
    finish,
    limits_of,
    new_axes,
    panels,
    share_limits,
    shorten,
    styled,
    wrap,
)

Rates = Mapping[str, Interval]


def is_variant(name: str, names: Sequence[str]) -> bool:
    """Whether a method is another with settings changed, and that other is among the names."""
    return ":" in name and settings_of(name)["method"] in names


def _ends(v: Interval) -> list[list[float]]:
    return [[max(v.value - v.low, 0)], [max(v.high - v.value, 0)]]


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The points than which none is both further right and lower, from left to right."""
    kept: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (-points[i][0], points[i][1])):
        if not kept or points[i][1] < points[kept[-1]][1]:
            kept.append(i)
    return kept[::-1]


def _scatter(ax: Axes, methods: Mapping[str, Rates], x: str, y: str) -> None:
    """Methods as labelled points with intervals, variants grey, the Pareto front through the best; limits are set."""
    methods = {n: v for n, v in methods.items() if np.isfinite([v[x].value, v[y].value]).all()}
    names = list(methods)
    at = [(methods[name][x].value, methods[name][y].value) for name in names]
    best = front(at)
    style: dict[str, Any] = {"color": "0.55", "linewidth": 0.9, "zorder": 1, "drawstyle": "steps-pre"}
    if best:
        ax.plot(*zip(*(at[i] for i in best), strict=True), **style)
    named = [i for i, name in enumerate(names) if i in best or not is_variant(name, names)]
    for i, name in enumerate(names):
        colour = "black" if name == "greedy" else CORRECT if i in best else HALLUCINATED if i in named else "0.7"
        style = {"color": colour, "marker": "o", "markersize": 4 if i in named else 3, "elinewidth": 0.6}
        v = methods[name]
        ax.errorbar(*at[i], xerr=_ends(v[x]), yerr=_ends(v[y]), zorder=3 if i in named else 2, **style)
    rest = [at[i] for i in range(len(names)) if i not in named]
    label_points(ax, [at[i] for i in named], [readable(names[i]) for i in named], rest)


@styled
def chair_against(methods: Mapping[str, Rates], column: str, label: str, ax: Axes | None = None) -> Axes:
    """CHAIR_S against another rate by method, with 95 % intervals; better is lower and further right.

    Blue methods are on the Pareto front; grey ones are variants of a method that is shown too, and are not named.
    """
    crowded = sum(not is_variant(n, list(methods)) for n in methods) > 6
    ax = new_axes(ax, *((5.0, WIDE) if crowded else (3.3,)))
    ends = [e for v in methods.values() for e in (v[column].low, v[column].high) if np.isfinite(e)]
    top = max(ends, default=1.0)
    xlim = share_limits(ends) if "%" in label else (0.0, 1.08 * top or 1.0)
    ax.set(xlabel=label, ylabel="captions with a hallucination, CHAIR_S (%)", ylim=SHARE, xlim=xlim)
    ax.set_title(f"Hallucination against {label.split(' (')[0]} (line: Pareto front)")
    finish(ax)
    _scatter(ax, methods, column, "chair_s")
    return ax


@styled
def operating_curve(
    recall: Float[np.ndarray, " point"],
    chair_i: Float[np.ndarray, " point"],
    methods: Mapping[str, Rates],
    ax: Axes | None = None,
    what: str = "greedy, stopping sooner or later",
) -> Axes:
    """Recall against CHAIR_I of the unchanged model as one knob is turned, and where methods land (all in percent).

    A method helps only where its point lies above the curve at the same CHAIR_I.  Methods have `recall` and `chair_i`.
    """
    ax = new_axes(ax, 4.6, WIDE)
    known = np.isfinite(recall) & np.isfinite(chair_i)
    x, y = chair_i[known], recall[known]
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    highs = [v["chair_i"].high for v in methods.values() if np.isfinite(v["chair_i"].high)]
    lows = [v["recall"].low for v in methods.values()]
    most = min(100.0, 10 * np.ceil((max([*x, *highs, 5.0]) + 1) / 10))
    ax.plot(x, y, color="black", marker=".", markersize=4, linewidth=1.2)
    ax.set(xlabel="mentions that are hallucinated, CHAIR_I (%)", ylabel="true objects named, recall (%)")
    ax.set(xlim=(0, most), ylim=share_limits([*y, *lows]), title=f"Operating curve (line: {what})")
    finish(ax)
    shown = {n: v for n, v in methods.items() if np.isfinite([v["recall"].value, v["chair_i"].value]).all()}
    names = list(shown)
    named = [name for name in names if not is_variant(name, names)]
    for name, v in shown.items():
        above = bool(len(x)) and v["recall"].value > np.interp(v["chair_i"].value, x, y)
        colour = "black" if name == "greedy" else "0.7" if name not in named else CORRECT if above else HALLUCINATED
        bars: dict[str, Any] = {"xerr": _ends(v["chair_i"]), "yerr": _ends(v["recall"])}
        ax.errorbar(v["chair_i"].value, v["recall"].value, fmt="o", markersize=4, elinewidth=0.8, color=colour, **bars)
    at = {name: (v["chair_i"].value, v["recall"].value) for name, v in shown.items()}
    along = [*zip(x, y, strict=True), *(p for name, p in at.items() if name not in named)]
    label_points(ax, [at[name] for name in named], [readable(name) for name in named], along)
    return ax


@styled
def against_controls(measures: Mapping[str, Mapping[str, Interval]], controls: Sequence[str]) -> list[Axes]:
    """A panel for each measure: every method with its 95 % interval, the range of the controls as a band behind.

    Measures whose label says % are drawn from 0 to 100.
    """
    names = {name: readable(name) for values in measures.values() for name in values if name not in controls}
    few = len(names) <= 4
    lines = {n: textwrap.fill(shorten(text, 44), 22) if few else shorten(text, 32) for n, text in names.items()}
    longest = max(len(line) for text in lines.values() for line in text.split("\n"))
    figure, axes = panels(len(measures), 2.5 + 0.065 * longest)
    for ax, (label, values) in zip(axes, measures.items(), strict=True):
        shown = {name: v for name, v in values.items() if name not in controls}
        for x, (name, v) in enumerate(shown.items()):
            colour = "black" if name == "greedy" else HALLUCINATED
            ax.errorbar(x, v.value, yerr=_ends(v), fmt="o", color=colour, capsize=3)
        random = [values[name].value for name in controls if name in values and np.isfinite(values[name].value)]
        if random:
            ax.axhspan(min(random), max(random), color="grey", alpha=0.25, linewidth=0)
            ax.axhline(float(np.mean(random)), color="grey", linestyle="--", linewidth=1)
        ax.set(ylabel=label, xlim=(-0.6, len(shown) - 0.4))
        ax.set_xticks(range(len(shown)), [lines[name] for name in shown], rotation=90, fontsize=8)
        if "%" in label:
            ax.set_ylim(SHARE)
    if controls:
        title = figure.suptitle(f"grey: {len(controls)} sets of as many random heads, range and mean", fontsize=10)
        wrap(title, figure.bbox.width)
    finish(axes)
    return axes


@styled
def method_matrix(
    differences: Mapping[str, Mapping[str, Interval]],
    label: str,
    causes: Mapping[str, str],
    ax: Axes | None = None,
    limits: tuple[float, float] | None = None,
) -> Axes:
    """A row a method, a column a model: the paired difference from greedy with its 95 % interval; hatched: not run.

    `causes` names the columns in their order and says under each what the model's hallucinations come from.  Bold
    where the interval leaves out 0.
    """
    names, models = list(differences), list(causes)
    found = [[differences[name].get(model) for model in models] for name in names]
    values = np.array([[np.nan if v is None else v.value for v in row] for row in found])
    ax = new_axes(ax, 1.3 + 0.36 * max(len(names), 2), WIDE if len(models) > 1 else 5.0)
    heat_map(values, "", ax, signed=True, limits=limits, annotated=False, bar=False)
    most = (limits or limits_of(values, signed=True))[1]
    for (row, column), value in np.ndenumerate(values):
        v = found[row][column]
        if v is not None and np.isfinite(value):
            text = f"{v.value:+.1f}\n[{v.low:.1f}, {v.high:.1f}]"
            colour = "white" if abs(value) > 0.6 * most else "black"
            weight = "bold" if v.low > 0 or v.high < 0 else "normal"
            style = {"color": colour, "weight": weight, "fontsize": 7, "ha": "center", "va": "center"}
            ax.text(column + 0.5, row + 0.5, text, **style)
    columns = [[textwrap.fill(text, max(8, 70 // len(models))) for text in (m, causes[m])] for m in models]
    ax.set_xticks(np.arange(len(models)) + 0.5, ["\n".join(lines).strip() for lines in columns], fontsize=8)
    ax.set_yticks(np.arange(len(names)) + 0.5, [shorten(readable(name), 34) for name in names], fontsize=8)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.set_xlabel(f"{label}; bold where the 95 % interval leaves out 0")
    finish(ax)
    return ax
