"""Labels beside the points that they name, none over another, a point or the rim of the axes."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

RINGS = np.arange(5, 400, 5)
ANGLES = np.deg2rad([45, 135, 315, 225, 67, 113, 293, 247, 90, 270, 22, 158, 338, 202, 0, 180])


def _overlap(box: Bbox, others: Sequence[Bbox]) -> float:
    """The area, in square pixels, that a box shares with others."""
    area = 0.0
    for other in others:
        width = min(box.x1, other.x1) - max(box.x0, other.x0)
        height = min(box.y1, other.y1) - max(box.y0, other.y0)
        area += max(width, 0) * max(height, 0)
    return area


def _side(component: float) -> float:
    """Where a label lies along a direction: before its point (-1), centred on it or behind it (1)."""
    return float(np.sign(component)) if abs(component) > 0.3 else 0.0


def label_points(
    ax: Axes, points: Sequence[tuple[float, float]], labels: Sequence[str], avoid: Sequence[tuple[float, float]]
) -> None:
    """Write each label as near to its point as is free; a thin line leads there from further away.

    `avoid` are further points, `(x, y)` in data, that no label may cover.  Limits of the axes are to be set before, as
    places are found in pixels.  Where nothing is free the place with the least overlap is taken.
    """
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    pixel = figure.dpi / 72
    inside = ax.get_window_extent()
    spots = [ax.transData.transform(p) for p in [*points, *avoid]]
    taken = [Bbox.from_bounds(x - 3 * pixel, y - 3 * pixel, 6 * pixel, 6 * pixel) for x, y in spots]
    for point, label in zip(points, labels, strict=True):
        text = ax.text(*point, label, fontsize=8, ha="left", va="bottom")
        size = text.get_window_extent()
        x, y = ax.transData.transform(point)
        best: tuple[float, Bbox] | None = None
        for ring in RINGS * pixel:
            for angle in ANGLES:
                across, up = np.cos(angle), np.sin(angle)
                left = x + ring * across - size.width * (1 - _side(across)) / 2
                low = y + ring * up - size.height * (1 - _side(up)) / 2
                box = Bbox.from_bounds(left, low, size.width, size.height)
                if box.x0 < inside.x0 or box.x1 > inside.x1 or box.y0 < inside.y0 or box.y1 > inside.y1:
                    continue
                covered = _overlap(box, taken)
                if best is None or covered < best[0]:
                    best = covered, box
            if best is not None and best[0] == 0:
                break
        box = Bbox.from_bounds(x, y, size.width, size.height) if best is None else best[1]
        taken.append(box)
        text.set_position(tuple(ax.transData.inverted().transform((box.x0, box.y0))))
        nearest = (np.clip(x, box.x0, box.x1), np.clip(y, box.y0, box.y1))
        if np.hypot(nearest[0] - x, nearest[1] - y) > 9 * pixel:
            end = ax.transData.inverted().transform(nearest)
            ax.plot([point[0], end[0]], [point[1], end[1]], color="0.5", linewidth=0.6, zorder=1)
