"""How every figure looks: canvas sizes that stay readable in a README, colour-blind safe colours, fitted labels."""

import textwrap
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

NARROW, WIDE = 4.0, 8.0
"""Widths in inches: one panel (three stand side by side, about 300 pixels each), several panels (about 800 pixels)."""
DPI = 200
CORRECT, HALLUCINATED = "#0072B2", "#D55E00"
HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours for categories, without the yellow that vanishes on white."""
LINES = ("-", "--", "-.", ":")
MARKERS = "osD^vPX"
SHARE = (0.0, 100.0)
"""Limits of a share in percent."""
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
P = ParamSpec("P")
R = TypeVar("R")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Decorator of a figure function: its settings hold inside it and nowhere else.

    The backend is loaded before: a notebook's says that figures are shown, and that must outlive the settings.
    """

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        plt.draw_if_interactive()
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def new_axes(ax: Axes | None, height: float, width: float = NARROW) -> Axes:
    """The axes given, or those of a new figure of some inches."""
    return plt.subplots(figsize=(width, height), layout="constrained")[1] if ax is None else ax


def panels(n: int, height: float, *, legend_rows: int = 0) -> tuple[Figure, list[Axes]]:
    """A wide figure with n axes beside each other; rows of a legend below add to its height."""
    size = (WIDE, height + 0.19 * legend_rows)
    figure, axes = plt.subplots(1, n, figsize=size, layout="constrained", squeeze=False)
    return figure, list(axes[0])


def wrap(text: Text, room: float, vertical: bool = False) -> bool:
    """Break the lines of a text so that it takes at most `room` pixels along its direction, if words allow.

    Returns whether it was too long.
    """
    words = " ".join(text.get_text().split())
    columns = len(words)
    while words:
        box = text.get_window_extent()
        extent = box.height if vertical else box.width
        longest = max(map(len, text.get_text().split("\n")))
        if extent <= room or columns <= 8:
            return columns < len(words)
        columns = min(columns - 1, int(longest * room / extent))
        lines = textwrap.wrap(words, max(columns, 8), break_long_words=False)
        text.set_text("\n".join(lines))
    return False


def finish(ax: Axes | Sequence[Axes]) -> None:
    """Wrap titles and labels of a figure's axes to the length of the side that they stand at."""
    figure = figure_of(ax)
    for _ in range(3):  # wrapped lines make the axes smaller
        figure.draw_without_rendering()
        wrapped = []
        for each in figure.axes:
            box = each.get_window_extent()
            texts = ((each.title, box.width), (each.xaxis.label, box.width), (each.yaxis.label, box.height))
            wrapped += [wrap(text, room, vertical=text is each.yaxis.label) for text, room in texts]
        if not any(wrapped):
            return


def figure_of(ax: Axes | Sequence[Axes]) -> Figure:
    """The figure that some axes belong to."""
    figure = (ax if isinstance(ax, Axes) else ax[0]).get_figure(root=True)
    assert figure is not None
    return figure


def save(ax: Axes | Sequence[Axes], path: Path, **data: Any) -> None:
    """Write the figure of some axes as PNG, with the arrays it shows beside it as `.npz`, and close it."""
    figure = figure_of(ax)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    if data:
        np.savez(path.with_suffix(".npz"), allow_pickle=False, **data)


def limits_of(*values: np.ndarray, signed: bool = False) -> tuple[float, float]:
    """Colour limits that several maps share: 0 (or minus the largest magnitude) to the largest; 1 if all are zero."""
    finite = np.concatenate([np.abs(v[np.isfinite(v)]).ravel() for v in values])
    most = float(finite.max(initial=0.0)) or 1.0
    return (-most if signed else 0.0), most


def share_limits(values: Sequence[float]) -> tuple[float, float]:
    """Axis limits of shares that all lie high: from a multiple of 10 % below them to 100 %."""
    finite = [v for v in values if np.isfinite(v)]
    return max(0.0, 10 * np.floor((min(finite, default=0.0) - 1) / 10)), 100.0


def shorten(text: str, width: int) -> str:
    """A text of at most `width` characters, its middle left out if it is longer."""
    keep = (width - 1) // 2
    return text if len(text) <= width else f"{text[: width - 1 - keep]}…{text[-keep:]}"
