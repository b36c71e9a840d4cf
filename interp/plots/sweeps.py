"""What a measure does as one setting is turned: sweeps of methods, and dose curves on a numeric axis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from interp.evaluate.bootstrap import Interval
from interp.plots.names import AXES
from interp.plots.style import HUES, LINES, MARKERS, SHARE, finish, panels, shorten, styled

LEGEND_WIDTH = 112
"""Characters that a row of a wide figure's legend holds."""


@dataclass(frozen=True)
class Curve:
    """A line of a sweep: values with lower and upper ends at places on the horizontal axis, as they are written."""

    label: str
    x: Sequence[str]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    band: bool = False
    """Drawn as a band (the range over seeds) rather than with bars (95 % intervals over images)."""


def _numbers(texts: Sequence[str]) -> list[float] | None:
    try:
        return [float(text) for text in texts]
    except ValueError:
        return None


def _style(i: int) -> dict[str, Any]:
    """Colours, then colours with other lines and markers: 28 that differ."""
    turn = i // len(HUES)
    return {"color": HUES[i % len(HUES)], "linestyle": LINES[turn % 4], "marker": MARKERS[turn % len(MARKERS)]}


def _draw(ax: Axes, curve: Curve, places: Sequence[str], style: dict[str, Any], shift: float) -> None:
    order = sorted(range(len(curve.x)), key=lambda j: places.index(curve.x[j]))
    x = np.array([places.index(curve.x[j]) for j in order], dtype=float) + (0 if curve.band else shift)
    y, low, high = (np.array(v, dtype=float)[order] for v in (curve.y, curve.low, curve.high))
    if curve.band:
        ax.fill_between(x, low, high, color="0.5", alpha=0.25, linewidth=0)
        ax.plot(x, y, **style)
    else:
        ends = [np.maximum(y - low, 0), np.maximum(high - y, 0)]
        ax.errorbar(x, y, yerr=ends, markersize=3, capsize=1.5, linewidth=1.2, elinewidth=0.8, **style)


@styled
def sweep_curves(
    measures: Mapping[str, Sequence[Curve]], baseline: Mapping[str, float], along: str, title: str = ""
) -> list[Axes]:
    """A panel for each measure, a line for each method, greedy dotted; the few values along the axis are evenly spaced.

    Measures whose label says % are drawn from 0 to 100; bands, the ranges of random controls, are grey.
    """
    labels = list(dict.fromkeys(c.label for curves in measures.values() for c in curves))
    bands = {c.label for curves in measures.values() for c in curves if c.band}
    coloured = [label for label in labels if label not in bands]
    styles = {label: _style(i) for i, label in enumerate(coloured)}
    styles |= {b: {"color": "0.4", "linestyle": LINES[(i + 1) % 4], "marker": ""} for i, b in enumerate(sorted(bands))}
    shown = {label: shorten(label, LEGEND_WIDTH) for label in labels}
    columns = max(1, min(4, LEGEND_WIDTH // (6 + max(map(len, [*shown.values(), "greedy"])))))
    figure, axes = panels(len(measures), 3.1, legend_rows=-(-(len(labels) + 1) // columns))
    for ax, (name, curves) in zip(axes, measures.items(), strict=True):
        places = list(dict.fromkeys(x for curve in curves for x in curve.x))
        numbers = _numbers(places)
        if numbers is not None:
            places = [text for _, text in sorted(zip(numbers, places, strict=True))]
        for i, curve in enumerate(curves):
            _draw(ax, curve, places, styles[curve.label], 0.25 * (i / max(len(curves) - 1, 1) - 0.5))
        ax.axhline(baseline[name], color="black", linestyle=":", linewidth=1)
        percent = along in AXES and AXES[along].endswith("(%)") and numbers is not None
        texts = [f"{100 * float(p):g}" if percent else shorten(p, 12) for p in places]
        turn = 90 if sum(map(len, texts)) > 22 else 0
        ax.set(xlabel=AXES.get(along, along.replace("_", " ")), ylabel=name)
        ax.set_xticks(range(len(places)), texts, rotation=turn)
        if "%" in name:
            ax.set_ylim(SHARE)
    handles = [Line2D([], [], markersize=3, **styles[label]) for label in labels]
    handles.append(Line2D([], [], color="black", linestyle=":", linewidth=1))
    figure.legend(handles, [*shown.values(), "greedy"], loc="outside lower center", ncols=columns)
    if title:
        figure.suptitle(title, fontsize=10)
    finish(axes)
    return axes


@styled
def dose_curve(
    dose: Float[np.ndarray, " dose"],
    measures: Mapping[str, Mapping[str, Sequence[Interval]]],
    xlabel: str,
    controls: Mapping[str, Float[np.ndarray, "control dose"]] | None = None,
    logarithmic: bool = False,
) -> list[Axes]:
    """Measures against a numeric dose: a panel for each measure, in it a line with 95 % intervals for each series.

    `controls` holds for a measure the values of controls, drawn as a grey band and its mean.  A
    logarithmic axis keeps a dose of 0 at its left end.  `xlabel` names the unit; measures that say % go from 0 to 100,
    AUROC from chance to 1.
    """
    labels = list(dict.fromkeys(name for series in measures.values() for name in series))
    styles = {label: _style(i) for i, label in enumerate(labels)}
    shown = {label: shorten(label, LEGEND_WIDTH) for label in labels}
    columns = max(1, min(4, LEGEND_WIDTH // (6 + max(map(len, shown.values()), default=0))))
    figure, axes = panels(len(measures), 3.0, legend_rows=-(-(len(labels) + 1) // columns))
    order = np.argsort(dose)
    x = dose[order]
    for ax, (measure, series) in zip(axes, measures.items(), strict=True):
        for name, values in series.items():
            if len(values) != len(dose):
                raise ValueError(f"{name}: expected a value for each of {len(dose)} doses, got {len(values)}")
            y, low, high = (np.array([getattr(values[i], f) for i in order]) for f in ("value", "low", "high"))
            ends = [np.maximum(y - low, 0), np.maximum(high - y, 0)]
            ax.errorbar(x, y, yerr=ends, markersize=3, capsize=1.5, linewidth=1.2, **styles[name])
        if controls and measure in controls:
            each = controls[measure][:, order]
            ax.fill_between(x, each.min(0), each.max(0), color="0.5", alpha=0.25, linewidth=0)
            ax.plot(x, each.mean(0), color="0.4", linestyle="--", linewidth=1)
        ax.set(xlabel=xlabel, ylabel=measure)
        if logarithmic:
            ax.set_xscale("symlog", linthresh=float(x[x > 0].min()) if (x > 0).any() else 1.0, linscale=0.4)
            ax.xaxis.set_minor_formatter(NullFormatter())
        shown_at = x[:: -(-len(x) // 8)]
        texts = [f"{v:g}" for v in shown_at]
        ax.set_xticks(shown_at, texts, rotation=90 if sum(map(len, texts)) > 12 else 0)
        if "%" in measure:
            ax.set_ylim(SHARE)
        elif measure == "AUROC":
            ax.set_ylim(0.5, 1.01)
    handles = [Line2D([], [], markersize=3, **styles[label]) for label in labels]
    texts = list(shown.values())
    if controls:
        handles.append(Line2D([], [], color="0.4", linestyle="--"))
        texts.append("controls (range, mean)")
    figure.legend(handles, texts, loc="outside lower center", ncols=columns)
    finish(axes)
    return axes
