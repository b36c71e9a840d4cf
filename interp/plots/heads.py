"""Maps of one number a head, or a layer and position, and cheap measurements of heads against exact ones."""

from collections.abc import Sequence

import numpy as np
import seaborn as sns
from jaxtyping import Float
from matplotlib.axes import Axes

from interp.plots.style import CORRECT, NARROW, WIDE, finish, limits_of, new_axes, shorten, styled

ANNOTATED, CELL = 9, 5
"""Heads, or positions, up to which a narrow map has numbers in its cells, and the characters that fit into one."""


@styled
def heat_map(
    values: Float[np.ndarray, "row column"],
    label: str,
    ax: Axes,
    *,
    signed: bool,
    limits: tuple[float, float] | None,
    annotated: bool,
    bar: bool = True,
) -> None:
    """Draw a heat map: zero is pale, signed values diverge from it, what was not measured (`nan`) is hatched grey."""
    low, high = limits_of(values, signed=signed) if limits is None else limits
    digits = ".0f" if high >= 30 else ".1f" if high >= 3 else ".2f"
    texts = np.vectorize(lambda v: format(v, digits).replace("-0.00", "0.00") if np.isfinite(v) else "")(values)
    sns.heatmap(
        values,
        ax=ax,
        annot=texts if annotated and max(map(len, texts.flat)) <= CELL else False,
        fmt="",
        annot_kws={"size": 7.5},
        cbar=bar,
        cbar_kws={"label": label} if bar else None,
        cmap="RdBu_r" if signed else "mako_r",
        vmin=low,
        vmax=high,
    )
    if np.isnan(values).any():
        ax.patch.set(facecolor="0.85", hatch="///", edgecolor="0.6")
    ax.tick_params(axis="y", rotation=0)
    ax.tick_params(axis="x", rotation=0)


@styled
def head_heatmap(
    values: Float[np.ndarray, "layer head"],
    label: str,
    title: str,
    ax: Axes | None = None,
    signed: bool = False,
    limits: tuple[float, float] | None = None,
) -> Axes:
    """Heat map of one number a head, a row a layer and a column a head; signed values are centred on 0.

    `limits` fixes the colours: `SHARE` for percentages, `limits_of(a, b)` for maps that are to be compared.  A head
    without a value (`nan`) is hatched.
    """
    n_layers, n_heads = values.shape
    ax = new_axes(ax, 1.3 + min(0.26 * max(n_layers, 4), 3.2))
    small = n_heads <= ANNOTATED and n_layers <= 2 * ANNOTATED
    heat_map(values, label, ax, signed=signed, limits=limits, annotated=small)
    ax.set(xlabel="head", ylabel="layer", title=title)
    finish(ax)
    return ax


@styled
def patching_heatmap(
    values: Float[np.ndarray, "layer position"],
    tokens: Sequence[str],
    label: str,
    title: str,
    ax: Axes | None = None,
    limits: tuple[float, float] | None = None,
) -> Axes:
    """What patching changes, a row a layer and a column a position, labelled with its token; 0 is white.

    `label` names the unit, such as "change of log p (nats)".  Of many positions every few are labelled.
    """
    n_layers, n = values.shape
    if len(tokens) != n:
        raise ValueError(f"expected a token for each of {n} positions, got {len(tokens)}")
    wide = n > 2 * ANNOTATED
    ax = new_axes(ax, 1.8 + min(0.24 * max(n_layers, 4), 4.2), WIDE if wide else NARROW)
    heat_map(values, label, ax, signed=True, limits=limits, annotated=n <= ANNOTATED and n_layers <= 2 * ANNOTATED)
    token_ticks(ax, tokens, 40 if wide else 18)
    ax.set(ylabel="layer", title=title)
    finish(ax)
    return ax


def token_ticks(ax: Axes, tokens: Sequence[str], most: int, offset: float = 0.5) -> None:
    """Label the columns of a map with tokens, evenly thinned to at most `most` of them."""
    every = -(-len(tokens) // most)
    shown = [shorten(t.strip() or repr(t), 14) for t in tokens[::every]]
    ax.set_xticks(np.arange(0, len(tokens), every) + offset, shown, rotation=90, fontsize=7.5)
    ax.set_xlabel("token" if every == 1 else f"token (one in {every} is named)")


@styled
def predicted_against(
    predicted: Float[np.ndarray, " n"], truth: Float[np.ndarray, " n"], xlabel: str, ylabel: str, ax: Axes | None = None
) -> Axes:
    """A cheap measurement against the exact one, with the line where they agree; dense places are darker."""
    ax = new_axes(ax, 3.7)
    known = np.isfinite(predicted) & np.isfinite(truth)
    predicted, truth = predicted[known], truth[known]
    ax.scatter(predicted, truth, s=4, alpha=0.15, color=CORRECT, linewidth=0, rasterized=True)
    both = np.concatenate([predicted, truth, [0.0]])
    ends = [float(both.min()), float(both.max()) or 1.0]
    ax.plot(ends, ends, color="black", linewidth=0.8, linestyle=":")
    ax.annotate("equal", (ends[1], ends[1]), (-4, 0), textcoords="offset points", ha="right", va="center", fontsize=8)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=f"every head and word ({len(truth):,} pairs)")
    finish(ax)
    return ax
