"""What the logit lens shows: words by layer and position, and words over the picture."""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from PIL.Image import Image, blend, new

from interp.plots.heads import heat_map, token_ticks
from interp.plots.style import SHARE, WIDE, finish, new_axes, shorten, styled

LENS_WORDS = 14
"""Positions up to which the logit lens writes its words into the cells."""
ACROSS = 9
"""Words that fit side by side over a picture (a line is a third as high as a word is wide)."""


@styled
def logit_lens(
    words: Sequence[Sequence[str]],
    probability: Float[np.ndarray, "layer position"],
    tokens: Sequence[str],
    title: str = "logit lens: most probable next token after each layer",
    ax: Axes | None = None,
) -> Axes:
    """What each layer would say at each position: the top word in the cell, its probability as the colour.

    `tokens` are those read at the positions.  With more than 14 positions the colours stand alone.
    """
    n_layers, n = probability.shape
    if len(words) != n_layers or any(len(row) != n for row in words) or len(tokens) != n:
        raise ValueError(f"expected {n_layers} rows of {n} words and {n} tokens")
    ax = new_axes(ax, 1.7 + min(0.2 * max(n_layers, 4), 6.4), WIDE)
    heat_map(100 * probability, "probability (%)", ax, signed=False, limits=SHARE, annotated=False)
    token_ticks(ax, tokens, 40)
    ax.set(ylabel="layer", title=title)
    finish(ax)
    if n <= LENS_WORDS:
        letters = max(3, int(78 / n))
        for layer, place in np.ndindex(n_layers, n):
            p, written = probability[layer, place], str(words[layer][place])
            word = written.strip() or repr(written)
            text = word if len(word) <= letters else f"{word[: letters - 1]}…"
            colour = "white" if np.isfinite(p) and p > 0.45 else "black"
            ax.text(place + 0.5, layer + 0.5, text, color=colour, fontsize=7, ha="center", va="center")
    return ax


class PlacedWord(NamedTuple):
    """A word that an image token says, how surely (0 to 1), and where: shares of the picture's width and height."""

    word: str
    score: float
    x: float
    y: float


@styled
def words_over_picture(picture: Image, words: Sequence[PlacedWord], title: str, ax: Axes | None = None) -> Axes:
    """A picture, paled, with the words that its tokens say; of tokens that lie close, the surest one speaks."""
    ax = new_axes(ax, 1.0 + 0.8 * WIDE * picture.height / picture.width, WIDE)
    ax.imshow(blend(picture.convert("RGB"), new("RGB", picture.size, "white"), 0.6))
    columns = min(ACROSS, len({w.x for w in words}))
    rows = min(max(1, round(3 * ACROSS * picture.height / picture.width)), len({w.y for w in words}))
    surest: dict[tuple[int, int], PlacedWord] = {}
    for placed in sorted(words, key=lambda w: w.score):
        surest[int(placed.x * columns), int(placed.y * rows)] = placed
    shade = plt.get_cmap("YlOrBr")
    for (column, row), placed in surest.items():
        box = {"boxstyle": "round,pad=0.15", "facecolor": shade(placed.score), "edgecolor": "none", "alpha": 0.85}
        at = ((column + 0.5) / columns * picture.width - 0.5, (row + 0.5) / rows * picture.height - 0.5)
        style = {"fontsize": 8, "ha": "center", "va": "center", "color": "white" if placed.score > 0.6 else "black"}
        ax.text(*at, shorten(placed.word, 10) or repr(placed.word), bbox=box, clip_on=True, **style)
    plt.colorbar(ScalarMappable(Normalize(0, 100), shade), ax=ax, label="probability (%)", shrink=0.9)
    ax.set_title(title)
    ax.set_axis_off()
    finish(ax)
    return ax
