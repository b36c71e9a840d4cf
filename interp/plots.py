"""Figures; each function draws on given axes or new ones and returns the Axes (all of them, if several)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from interp.evaluate.statistics import Interval
from interp.metrics.ranking import auroc

CORRECT, HALLUCINATED = "#3b6fb6", "#c8442f"


def _axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    return plt.subplots(figsize=size, layout="constrained")[1] if ax is None else ax


def save(ax: Axes | Sequence[Axes], path: Path) -> None:
    """Write the figure of some axes as PNG, and close it."""
    figure = (ax if isinstance(ax, Axes) else ax[0]).get_figure(root=True)
    assert figure is not None
    figure.savefig(path, dpi=150)
    plt.close(figure)


def vhd_heatmap(
    vhd: Float[np.ndarray, "layer head"], ax: Axes | None = None, title: str = "VHD at the first step, mean over images"
) -> Axes:
    """Heat map of VHD, a row a layer and a column a head."""
    n_layers, n_heads = vhd.shape
    ax = _axes(ax, (1.6 + 0.5 * min(n_heads, 20), 1.2 + 0.4 * min(n_layers, 20)))
    small = n_layers * n_heads <= 144
    sns.heatmap(
        vhd, ax=ax, cmap="rocket", annot=small, fmt=".1f", annot_kws={"size": 7}, cbar_kws={"label": "VHD"}, vmin=0
    )
    ax.set(xlabel="head", ylabel="layer", title=title)
    ax.tick_params(axis="y", rotation=0)
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


def chair_against_recall(methods: Mapping[str, Mapping[str, Interval]], ax: Axes | None = None) -> Axes:
    """CHAIR_S against recall by method, with 95 % intervals; better is lower and further right."""
    ax = _axes(ax, (6, 4))
    handles = []
    for colour, (name, values) in zip(sns.color_palette("colorblind", len(methods)), methods.items(), strict=True):
        x, y = values["recall"], values["chair_s"]
        ax.errorbar(
            x.value,
            y.value,
            xerr=[[max(x.value - x.low, 0)], [max(x.high - x.value, 0)]],
            yerr=[[max(y.value - y.low, 0)], [max(y.high - y.value, 0)]],
            fmt="o",
            color=colour,
            capsize=3,
        )
        handles.append(Line2D([], [], color=colour, marker="o", linestyle="", label=name))
    ax.set(
        xlabel="recall of true objects (%)",
        ylabel="CHAIR_S: captions with a hallucination (%)",
        title="Hallucination against recall",
    )
    ax.legend(handles=handles, frameon=False)
    sns.despine(ax=ax)
    return ax
