"""Where attention goes: sparsity curves, an overlay on the picture, and the tokens that receive most."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import NullFormatter
from PIL.Image import Image, blend, new

from interp.plots.style import CORRECT, HUES, SHARE, finish, new_axes, shorten, styled

GLOW = LinearSegmentedColormap.from_list(
    "glow", [(1, 0.9, 0.4, 0), (1, 0.65, 0.1, 0.6), (0.84, 0.2, 0, 0.8), (0.45, 0, 0.1, 0.92)]
)
"""From nothing over orange to dark red: a place without attention stays as it is."""

APART = 0.12
"""Share of an axis of 0 to 100 % that a line of text takes, generously."""


@styled
def sparsity_curves(
    fractions: Sequence[float],
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    layers: Mapping[str, np.ndarray] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Share of the attention mass in the top share of the keys: means with standard errors, and layers in grey.

    Curves named `X` and `X, without ...` share a colour; the second is dashed.
    """
    ax = new_axes(ax, 3.6 + 0.17 * len(curves))
    x = [100 * f for f in fractions]
    grey = {name: values for name, values in (layers or {}).items() if np.isfinite(values[0])}
    for values in grey.values():
        ax.plot(x, 100 * values, color="0.75", linewidth=0.8, zorder=1)
    ends = [f(grey, key=lambda name: grey[name][0]) for f in (min, max)] if grey else []
    if ends and grey[ends[1]][0] - grey[ends[0]][0] > APART:
        for name, below in zip(ends, (grey[ends[0]][0] > APART, grey[ends[1]][0] > 1 - APART), strict=True):
            style = {"xytext": (0, -3 if below else 3), "va": "top" if below else "bottom", "fontsize": 8}
            ax.annotate(name, (x[0], 100 * grey[name][0]), textcoords="offset points", **style)
    groups = list(dict.fromkeys(name.partition(",")[0] for name in curves))
    for name, (mean, error) in curves.items():
        group, without, _ = name.partition(",")
        colour = HUES[groups.index(group) % len(HUES)]
        style = {"color": colour, "linestyle": "--" if without else "-", "marker": "o", "markersize": 3}
        ax.errorbar(x, 100 * mean, yerr=100 * error, label=name, **style)
    ax.set(xscale="log", ylim=SHARE, xlabel="top share of the keys (%)", ylabel="share of the attention (%)")
    ax.set_xticks(x, [f"{v:g}" for v in x])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(axis="x", which="minor", length=0)
    ax.set_title("Sparsity of attention" + (" (grey: generated queries, by layer)" if grey else ""))
    ax.figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center")
    finish(ax)
    return ax


@styled
def overlay(picture: Image, heat: Float[np.ndarray, "row column"], title: str, ax: Axes | None = None) -> Axes:
    """A picture with the attention that falls on it laid over it.

    1 is what a place would get if all of a step's attention lay evenly on the picture.  The scale reaches at least
    that far, so a picture that little attention falls on stays pale.
    """
    ax = new_axes(ax, 0.9 + 3.1 * heat.shape[0] / heat.shape[1])
    grey = picture.convert("L").convert("RGB")
    ax.imshow(blend(grey, new("RGB", grey.size, "white"), 0.3))
    relative = np.nan_to_num(heat) * heat.size
    most = max(1.0, float(relative.max()))
    drawn = ax.imshow(relative, cmap=GLOW, vmin=0, vmax=most, interpolation="nearest")
    plt.colorbar(drawn, ax=ax, label="attention (1: all of it, evenly spread)", shrink=0.9)
    ax.set_title(title)
    ax.set_axis_off()
    finish(ax)
    return ax


@styled
def bars(
    labels: Sequence[str],
    values: Sequence[float],
    label: str,
    title: str,
    ax: Axes | None = None,
    limits: tuple[float, float] | None = None,
) -> Axes:
    """One horizontal bar for each label with its value, the longest on top; `nan` comes last and has none."""
    lines = [textwrap.fill(shorten(text, 56), 30) for text in labels]
    ax = new_axes(ax, 1.2 + 0.2 * len(lines) * max(1 + line.count("\n") for line in lines))
    order = sorted(range(len(labels)), key=lambda i: -values[i] if np.isfinite(values[i]) else np.inf)
    shown = [values[i] if np.isfinite(values[i]) else 0.0 for i in order]
    ax.barh(range(len(order)), shown, color=CORRECT)
    ax.set_yticks(range(len(order)), [lines[i] for i in order], fontsize=8)
    ax.invert_yaxis()
    low, high = (min(0.0, *shown), max(0.0, *shown) or 1.0) if limits is None else limits
    ax.set(xlim=(low, high + (0.16 if limits is None else 0.0) * (high - low)), xlabel=label, title=title)
    digits = ".1f" if max(map(abs, shown), default=0) >= 10 else ".2f"
    for place, i in enumerate(order):
        text = format(values[i], digits) if np.isfinite(values[i]) else "no value"
        inside = shown[place] > low + 0.8 * (high - low) and limits is not None
        style: dict[str, Any] = {"color": "white" if inside else "black", "ha": "right" if inside else "left"}
        offset = (-3 if inside else 3, 0)
        at = (max(shown[place], low), place)
        ax.annotate(text, at, offset, textcoords="offset points", va="center", fontsize=8, **style)
    finish(ax)
    return ax
