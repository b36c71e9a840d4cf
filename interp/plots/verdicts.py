"""Claims by models: what holds where."""

import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from interp.plots.style import WIDE, figure_of, finish, new_axes, styled

COLOURS = {"holds": "#9ecae1", "does not hold": "#fdae6b", "inconclusive": "#e6e6e6"}
"""Blue and orange, which every eye tells apart; the words say it too."""
SIGNS = {"holds": "holds", "does not hold": "no", "inconclusive": "open"}


@styled
def verdict_matrix(
    verdicts: Mapping[str, Mapping[str, tuple[str, str]]], models: Sequence[str], ax: Axes | None = None
) -> Axes:
    """A row a claim, a column a model: its verdict and the number that it rests on; white: not measured.

    `verdicts`: claim -> model -> (holds, does not hold or inconclusive; the number).
    """
    ax = new_axes(ax, 0.9 + 0.37 * max(len(verdicts), 2), WIDE)
    for row, found in enumerate(verdicts.values()):
        for column, model in enumerate(models):
            if model in found:
                outcome, number = found[model]
                ax.add_patch(Rectangle((column, row), 1, 1, facecolor=COLOURS[outcome], edgecolor="white"))
                text = f"{SIGNS[outcome]}\n{number}"
                ax.text(column + 0.5, row + 0.5, text, fontsize=6.5, ha="center", va="center", linespacing=1.1)
    ax.set(xlim=(0, len(models)), ylim=(len(verdicts), 0))
    ax.set_xticks([i + 0.5 for i in range(len(models))], [m.replace("-", "-\n", 1) for m in models], fontsize=8)
    claims = [textwrap.fill(textwrap.shorten(claim, 94, placeholder=" ..."), 50) for claim in verdicts]
    ax.set_yticks([i + 0.5 for i in range(len(verdicts))], claims, fontsize=7)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    keys = [Patch(facecolor=colour, label=outcome) for outcome, colour in COLOURS.items()]
    figure_of(ax).legend(handles=keys, loc="outside lower center", ncols=3)
    finish(ax)
    return ax
