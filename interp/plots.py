"""Figures; each function draws on given axes or new ones and returns the Axes."""

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


def t_vhd_histograms(
    words: Sequence[Mapping[str, Any]], sentences: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]
) -> tuple[Axes, Axes]:
    """T-VHD of hallucinated against correct words, and of sentences with and without a hallucination."""
    _, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for ax, records, noun, area in (
        (left, words, "object words", "auroc"),
        (right, sentences, "sentences", "auroc_sentence"),
    ):
        values = {flag: [r["t_vhd"] for r in records if r["hallucinated"] is flag] for flag in (False, True)}
        edges = np.histogram_bin_edges([v for vs in values.values() for v in vs] or [0.0], bins=30)
        for flag, colour, label in ((False, CORRECT, "correct"), (True, HALLUCINATED, "hallucinated")):
            if values[flag]:
                ax.hist(
                    values[flag],
                    bins=list(edges),
                    density=True,
                    alpha=0.55,
                    color=colour,
                    label=f"{label} ({len(values[flag])})",
                )
                ax.axvline(float(np.mean(values[flag])), color=colour, linestyle="--", linewidth=1)
        score = summary[area]
        ax.set(
            xlabel=f"T-VHD of {noun}"
            + (" (mean over tokens)" if noun == "sentences" else f" (top {summary['k']} heads a layer)"),
            ylabel="density",
            title=f"{noun}: AUROC {score:.2f}" if score is not None else f"{noun}: nothing to compare",
        )
        ax.legend(frameon=False)
        sns.despine(ax=ax)
    return left, right


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
