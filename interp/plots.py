"""Figures; each function draws on given axes or new ones and returns the Axes (all of them, if several)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from PIL.Image import Image

from interp.evaluate.bootstrap import Interval
from interp.metrics.ranking import auroc

CORRECT, HALLUCINATED = "#3b6fb6", "#c8442f"


def _axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    return plt.subplots(figsize=size, layout="constrained")[1] if ax is None else ax


def save(ax: Axes | Sequence[Axes], path: Path, **data: Any) -> None:
    """Write the figure of some axes as PNG, with the arrays it shows beside it as `.npz`, and close it."""
    figure = (ax if isinstance(ax, Axes) else ax[0]).get_figure(root=True)
    assert figure is not None
    figure.savefig(path, dpi=150)
    plt.close(figure)
    if data:
        np.savez(path.with_suffix(".npz"), allow_pickle=False, **data)


def head_heatmap(
    values: Float[np.ndarray, "layer head"], label: str, title: str, ax: Axes | None = None, signed: bool = False
) -> Axes:
    """Heat map of one number a head, a row a layer and a column a head; signed values are centred on 0."""
    n_layers, n_heads = values.shape
    ax = _axes(ax, (1.6 + 0.5 * min(n_heads, 20), 1.2 + 0.4 * min(n_layers, 20)))
    most = float(np.abs(values).max()) or 1.0
    scale: Any = {"cmap": "coolwarm", "vmin": -most, "vmax": most} if signed else {"cmap": "rocket", "vmin": 0}
    small = n_layers * n_heads <= 144
    sns.heatmap(
        values,
        ax=ax,
        annot=small,
        fmt=".1f" if most >= 3 else ".2f",
        annot_kws={"size": 7},
        cbar_kws={"label": label},
        **scale,
    )
    ax.set(xlabel="head", ylabel="layer", title=title)
    ax.tick_params(axis="y", rotation=0)
    return ax


def sparsity_curves(
    fractions: Sequence[float],
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    layers: Mapping[str, np.ndarray] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Share of the attention mass in the top share of the keys: means with standard errors, and layers in grey."""
    ax = _axes(ax, (6.4, 4.2))
    x = [100 * f for f in fractions]
    middle, grey = len(x) // 2, dict(layers or {})
    ends = [f(grey, key=lambda name: grey[name][middle]) for f in (min, max)] if grey else []
    for name, values in grey.items():
        ax.plot(x, 100 * values, color="0.75", linewidth=0.8, zorder=1)
        if name in ends:
            ax.annotate(name, (x[middle], 100 * values[middle]), fontsize=7, color="0.4")
    for colour, (name, (mean, error)) in zip(sns.color_palette("colorblind"), curves.items(), strict=False):
        style = "--" if "without" in name else "-"
        ax.errorbar(
            x, 100 * mean, yerr=100 * error, label=name, color=colour, linestyle=style, marker="o", markersize=3
        )
    ax.set(xscale="log", ylim=(0, 102), xlabel="top share of the keys (%)", ylabel="share of the attention (%)")
    ax.set_title("Sparsity of attention" + (" (grey: generated queries, by layer)" if grey else ""))
    ax.legend(frameon=False, fontsize=8)
    sns.despine(ax=ax)
    return ax


def overlay(picture: Image, heat: Float[np.ndarray, "row column"], title: str, ax: Axes | None = None) -> Axes:
    """A picture with attention per area laid over it; the colour bar is relative to evenly spread attention."""
    ax = _axes(ax, (4.6, 1 + 3.6 * heat.shape[0] / heat.shape[1]))
    even = heat / max(heat.mean(), 1e-12)
    ax.imshow(picture.convert("L").convert("RGB"))
    drawn = ax.imshow(even, cmap="inferno", alpha=0.6, vmin=0, interpolation="nearest")
    plt.colorbar(drawn, ax=ax, label="attention, 1 = evenly spread", shrink=0.8)
    ax.set_title(title, fontsize=9)
    ax.set_axis_off()
    return ax


def bars(labels: Sequence[str], values: Sequence[float], label: str, title: str, ax: Axes | None = None) -> Axes:
    """One horizontal bar for each label, the first on top."""
    ax = _axes(ax, (6, 0.9 + 0.28 * len(labels)))
    ax.barh(range(len(labels)), values, color=CORRECT)
    ax.set_yticks(range(len(labels)), labels, fontsize=8)
    ax.invert_yaxis()
    ax.set(xlabel=label, title=title)
    sns.despine(ax=ax)
    return ax


def t_vhd_histogram(records: Sequence[Mapping[str, Any]], label: str, ax: Axes | None = None) -> Axes:
    """T-VHD of hallucinated against correct words or sentences: records with `t_vhd` and `hallucinated`."""
    ax = _axes(ax, (5, 3.6))
    values = {flag: [r["t_vhd"] for r in records if r["hallucinated"] is flag] for flag in (False, True)}
    edges = np.histogram_bin_edges([*values[False], *values[True]] or [0.0], bins=30)
    for flag, colour, name in ((False, CORRECT, "correct"), (True, HALLUCINATED, "hallucinated")):
        if values[flag]:
            ax.hist(
                values[flag],
                bins=list(edges),
                density=True,
                alpha=0.55,
                color=colour,
                label=f"{name} ({len(values[flag])})",
            )
            ax.axvline(float(np.mean(values[flag])), color=colour, linestyle="--", linewidth=1)
            ax.legend(frameon=False)
    score = auroc([*values[False], *values[True]], [True] * len(values[False]) + [False] * len(values[True]))
    ax.set(xlabel=f"T-VHD of {label}", ylabel="density", title="" if score is None else f"AUROC {score:.2f}")
    sns.despine(ax=ax)
    return ax


def t_vhd_histograms(
    words: Sequence[Mapping[str, Any]], sentences: Sequence[Mapping[str, Any]], top_k: int
) -> tuple[Axes, Axes]:
    """T-VHD at word and at sentence level, side by side on a new figure."""
    _, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    t_vhd_histogram(words, f"object words (top {top_k} of a layer's heads)", left)
    t_vhd_histogram(sentences, "sentences (mean over tokens)", right)
    return left, right


def t_vhd_along(tokens: Sequence[str], t_vhd: Sequence[float], ax: Axes | None = None) -> Axes:
    """T-VHD of each token of a caption, in order."""
    ax = _axes(ax, (max(4, 1 + 0.24 * len(tokens)), 3))
    ax.bar(range(len(tokens)), t_vhd, color=CORRECT)
    ax.set_xticks(range(len(tokens)), [t.strip() or repr(t) for t in tokens], rotation=90, fontsize=7)
    ax.set(ylabel="T-VHD", xlim=(-0.7, len(tokens) - 0.3), title="T-VHD of each token of the caption")
    sns.despine(ax=ax)
    return ax


def chair_against(
    methods: Mapping[str, Mapping[str, Interval]], column: str, label: str, ax: Axes | None = None
) -> Axes:
    """CHAIR_S against another rate by method, with 95 % intervals; better is lower and further right."""
    ax = _axes(ax, (6.4, 4.4))
    handles = []
    palette = sns.color_palette("colorblind" if len(methods) <= 10 else "husl", len(methods))
    for i, (colour, (name, values)) in enumerate(zip(palette, methods.items(), strict=True)):
        x, y = values[column], values["chair_s"]
        marker = "osD^v"[i % 5]
        ax.errorbar(
            x.value,
            y.value,
            xerr=[[max(x.value - x.low, 0)], [max(x.high - x.value, 0)]],
            yerr=[[max(y.value - y.low, 0)], [max(y.high - y.value, 0)]],
            fmt=marker,
            color=colour,
            capsize=3,
        )
        handles.append(Line2D([], [], color=colour, marker=marker, linestyle="", label=name))
    ax.set(
        xlabel=label,
        ylabel="CHAIR_S: captions with a hallucination (%)",
        title=f"Hallucination against {label.split(' (')[0]}",
    )
    ax.legend(handles=handles, frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    sns.despine(ax=ax)
    return ax


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


def sweep_curves(panels: Mapping[str, Sequence[Curve]], baseline: Mapping[str, float], xlabel: str) -> list[Axes]:
    """A panel for each measure, a line for each method, greedy dotted; few values along the axis are evenly spaced."""
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 4), layout="constrained", squeeze=False)
    labels = list(dict.fromkeys(curve.label for curves in panels.values() for curve in curves))
    palette = sns.color_palette("colorblind" if len(labels) <= 10 else "husl", len(labels))
    colours = dict(zip(labels, palette, strict=True))
    for ax, (name, curves) in zip(axes[0], panels.items(), strict=True):
        places = list(dict.fromkeys(x for curve in curves for x in curve.x))
        numbers = _numbers(places)
        if numbers is not None:
            places = [text for _, text in sorted(zip(numbers, places, strict=True))]
        for i, curve in enumerate(curves):
            order = sorted(range(len(curve.x)), key=lambda j: places.index(curve.x[j]))
            x = np.array([places.index(curve.x[j]) for j in order]) + (
                0 if curve.band else 0.03 * (i - len(curves) / 2)
            )
            y, low, high = (np.array(v, dtype=float)[order] for v in (curve.y, curve.low, curve.high))
            style: Any = {"color": colours[curve.label], "label": curve.label}
            if curve.band:
                ax.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)
                ax.plot(x, y, linestyle="--", **style)
            else:
                ends = [np.maximum(y - low, 0), np.maximum(high - y, 0)]
                ax.errorbar(x, y, yerr=ends, marker="o", markersize=3, capsize=2, linewidth=1.2, **style)
        ax.axhline(baseline[name], color="black", linestyle=":", linewidth=1)
        ax.set(xlabel=xlabel, ylabel=name, xticks=range(len(places)), xticklabels=places)
        sns.despine(ax=ax)
    handles, shown = axes[0, 0].get_legend_handles_labels()
    handles.append(Line2D([], [], color="black", linestyle=":", linewidth=1))
    columns = 2 if max(map(len, shown)) > 40 else 4
    figure.legend(handles, [*shown, "greedy"], loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    return list(axes[0])


def predicted_against(
    predicted: Float[np.ndarray, " n"], truth: Float[np.ndarray, " n"], xlabel: str, ylabel: str, ax: Axes | None = None
) -> Axes:
    """A cheap measurement against the exact one, with the line where they agree; dense places are darker."""
    ax = _axes(ax, (4.8, 4.4))
    ax.scatter(predicted, truth, s=3, alpha=0.15, color=CORRECT, linewidth=0, rasterized=True)
    ends = [float(min(predicted.min(), truth.min())), float(max(predicted.max(), truth.max()))]
    ax.plot(ends, ends, color="black", linewidth=0.8, linestyle=":")
    ax.set(xlabel=xlabel, ylabel=ylabel, title="every head and word")
    sns.despine(ax=ax)
    return ax


def against_controls(panels: Mapping[str, Mapping[str, Interval]], controls: Sequence[str]) -> list[Axes]:
    """A panel for each measure: every method with its 95 % interval, the range of the controls as a band behind."""
    figure, axes = plt.subplots(1, len(panels), figsize=(2.6 * len(panels), 3.2), layout="constrained", squeeze=False)
    for ax, (label, values) in zip(axes[0], panels.items(), strict=True):
        shown = {name: v for name, v in values.items() if name not in controls}
        for x, (name, v) in enumerate(shown.items()):
            ends = [[max(v.value - v.low, 0)], [max(v.high - v.value, 0)]]
            colour = "black" if name == "greedy" else HALLUCINATED
            ax.errorbar(x, v.value, yerr=ends, fmt="o", color=colour, capsize=3)
        random = [values[name].value for name in controls if name in values]
        if random:
            ax.axhspan(min(random), max(random), color="grey", alpha=0.25, linewidth=0)
            ax.axhline(float(np.mean(random)), color="grey", linestyle="--", linewidth=1)
        names = [name.replace(" by ", "\nby ") for name in shown]
        ax.set(ylabel=label, xlim=(-0.6, len(shown) - 0.4), xticks=range(len(shown)), xticklabels=names)
        ax.tick_params(axis="x", labelsize=8)
        sns.despine(ax=ax)
    figure.suptitle(f"grey: {len(controls)} sets of as many random heads", fontsize=9)
    return list(axes[0])
