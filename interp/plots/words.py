"""Words of captions: T-VHD of hallucinated against correct ones, along a caption, and ROC curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes

from interp.metrics.ranking import auroc
from interp.plots.heads import token_ticks
from interp.plots.style import (
    CORRECT,
    HALLUCINATED,
    HUES,
    LINES,
    NARROW,
    SHARE,
    WIDE,
    finish,
    new_axes,
    panels,
    shorten,
    styled,
)

TOKENS_A_ROW = 36


def _finite(records: Sequence[Mapping[str, Any]], hallucinated: bool) -> list[float]:
    values = (r["t_vhd"] for r in records if r["hallucinated"] is hallucinated)
    return [float(v) for v in values if np.isfinite(v)]


@styled
def t_vhd_histogram(records: Sequence[Mapping[str, Any]], label: str, ax: Axes | None = None) -> Axes:
    """T-VHD of hallucinated against correct words or sentences: records with `t_vhd` and `hallucinated`.

    Bars are shares of their own group; dashed lines are means.  Records without a finite T-VHD are left out.
    """
    ax = new_axes(ax, 3.2)
    groups = {"correct": _finite(records, False), "hallucinated": _finite(records, True)}
    every = [v for values in groups.values() for v in values]
    edges = list(np.histogram_bin_edges(every or [0.0], bins=30))
    for (name, values), colour in zip(groups.items(), (CORRECT, HALLUCINATED), strict=True):
        named = f"{name} ({len(values)})"
        share = np.full(len(values), 100 / max(len(values), 1))
        ax.hist(values, bins=edges, weights=share, histtype="stepfilled", color=colour, alpha=0.35, label=named)
        ax.hist(values, bins=edges, weights=share, histtype="step", color=colour, linewidth=1)
        if values:
            ax.axvline(float(np.mean(values)), color=colour, linestyle="--", linewidth=1)
    score = auroc(every, [True] * len(groups["correct"]) + [False] * len(groups["hallucinated"]))
    title = "no AUROC: a group is empty" if score is None else f"AUROC {score:.2f} (0.5 is chance)"
    ax.set(xlabel=f"T-VHD of {label}", ylabel="share of a group (%)", title=title)
    ax.set_ylim(0, 1.3 * max(ax.get_ylim()[1], 1e-9))
    ax.legend(loc="upper left", handlelength=1)
    finish(ax)
    return ax


@styled
def t_vhd_histograms(
    words: Sequence[Mapping[str, Any]], sentences: Sequence[Mapping[str, Any]], top_k: int
) -> tuple[Axes, Axes]:
    """T-VHD at word and at sentence level, side by side on a new figure."""
    _, (left, right) = panels(2, 3.2)
    heads = "strongest head" if top_k == 1 else f"{top_k} strongest heads"
    t_vhd_histogram(words, f"object words (sum over layers of the {heads})", left)
    t_vhd_histogram(sentences, "sentences (mean over tokens)", right)
    return left, right


@styled
def t_vhd_along(tokens: Sequence[str], t_vhd: Sequence[float]) -> list[Axes]:
    """T-VHD of each token of a caption, in order; a long caption goes on in rows below."""
    if len(tokens) != len(t_vhd) or not tokens:
        raise ValueError(f"expected tokens and as many values, got {len(tokens)} and {len(t_vhd)}")
    rows = -(-len(tokens) // TOKENS_A_ROW)
    size = (NARROW if len(tokens) <= 16 else WIDE, 0.6 + 1.9 * rows)
    _, axes = plt.subplots(rows, 1, figsize=size, layout="constrained", squeeze=False)
    most = float(np.max(t_vhd, where=np.isfinite(t_vhd), initial=0.0))
    for ax, start in zip(axes[:, 0], range(0, len(tokens), TOKENS_A_ROW), strict=True):
        some = t_vhd[start : start + TOKENS_A_ROW]
        ax.bar(range(len(some)), np.nan_to_num(some), color=CORRECT)
        width = len(tokens) if rows == 1 else TOKENS_A_ROW
        ax.set(ylabel="T-VHD", xlim=(-0.7, width - 0.3), ylim=(0, 1.05 * most or 1.0))
        token_ticks(ax, tokens[start : start + TOKENS_A_ROW], TOKENS_A_ROW, offset=0)
        ax.set_xlabel("")
    axes[0, 0].set_title("T-VHD of each token of the caption")
    axes[-1, 0].set_xlabel("token of the caption")
    finish(list(axes[:, 0]))
    return list(axes[:, 0])


@styled
def swap_losses(
    picture: Float[np.ndarray, " word"],
    text: Float[np.ndarray, " word"],
    hallucinated: Bool[np.ndarray, " word"],
    criterion: float,
    ax: Axes | None = None,
) -> Axes:
    """What swapping the picture and swapping the text before it take from each word's log p (nats), against each other.

    Dotted lines are the criterion: right of it a word follows the picture, above it the text.
    """
    ax = new_axes(ax, 3.7)
    for name, own, colour in (("correct", ~hallucinated, CORRECT), ("hallucinated", hallucinated, HALLUCINATED)):
        label = f"{name} ({int(own.sum())})"
        ax.scatter(picture[own], text[own], s=12, alpha=0.5, color=colour, linewidth=0, label=label)
    style: dict[str, Any] = {"color": "black", "linestyle": ":", "linewidth": 0.8}
    ax.axvline(criterion, **style)
    ax.axhline(criterion, **style)
    ax.set(xlabel="log p lost with the picture swapped (nats)", ylabel="log p lost with the text swapped (nats)")
    ax.set_title("what object words follow")
    ax.margins(y=0.2)
    ax.legend(loc="upper left", handlelength=1)
    finish(ax)
    return ax


@styled
def roc_curve(
    scores: Mapping[str, Float[np.ndarray, " word"]],
    positive: Bool[np.ndarray, " word"],
    ax: Axes | None = None,
    what: str = "hallucinated words",
) -> Axes:
    """ROC curve of each score, the best first; a higher score says positive.  Not finite values are an error.

    Raises ValueError unless both classes are there.
    """
    if positive.all() or not positive.any():
        raise ValueError(f"a ROC curve takes both classes, got {int(positive.sum())} positive of {len(positive)}")
    area: dict[str, float] = {}
    for name, score in scores.items():
        found = auroc(score, positive) if np.isfinite(score).all() else None
        if found is None:
            raise ValueError(f"the score {name!r} has values that are not finite")
        area[name] = found
    ax = new_axes(ax, 3.7 + 0.19 * len(scores))
    ax.plot(SHARE, SHARE, color="0.6", linestyle=":", linewidth=1)
    for i, name in enumerate(sorted(area, key=lambda name: -area[name])):
        order = np.argsort(-scores[name], kind="stable")
        last = np.flatnonzero(np.append(np.diff(scores[name][order]) != 0, True))  # equal scores fall together
        hits, misses = np.cumsum(positive[order])[last], np.cumsum(~positive[order])[last]
        x, y = (100 * np.append(0, each) / each[-1] for each in (misses, hits))
        style = {"color": HUES[i % len(HUES)], "linestyle": LINES[i // len(HUES) % len(LINES)], "linewidth": 1.5}
        ax.plot(x, y, label=f"{shorten(name, 38)} ({area[name]:.2f})", **style)
    ax.set(xlim=SHARE, ylim=SHARE, xlabel="false alarms (%)", ylabel=f"{what} found (%)", title="ROC (AUROC)")
    ax.figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center")
    finish(ax)
    return ax
