"""A map of one number a head that shows itself in a notebook: point at a head for its layer, number and value."""

from dataclasses import dataclass

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.colors import to_hex

from interp import plots
from interp.views.markup import figure_png, interactive


@dataclass(frozen=True, repr=False)
class HeadMap:
    """Values `[layer, head]` (nan: not measured), `label` with their unit; `signed`: colours diverge at 0."""

    values: Float[np.ndarray, "layer head"]
    label: str
    title: str
    signed: bool = False

    def __repr__(self) -> str:
        return f"HeadMap({self.title!r}, {self.values.shape[0]} layers x {self.values.shape[1]} heads)"

    def _repr_png_(self) -> bytes:
        """The map as a picture."""
        return figure_png(plots.head_heatmap(self.values, self.label, self.title, signed=self.signed))

    def _repr_html_(self) -> str:
        """The map to point at; the picture where no script may run."""
        low, high = plots.limits_of(self.values, signed=self.signed)
        colours = matplotlib.colormaps["RdBu_r" if self.signed else "mako_r"]
        shown = [[None if np.isnan(v) else float(f"{v:.4g}") for v in row] for row in self.values]
        drawn = [
            ["#999999" if np.isnan(v) else to_hex(colours((v - low) / (high - low))) for v in r] for r in self.values
        ]
        data = {"values": shown, "colours": drawn, "label": self.label, "title": self.title}
        return interactive("heat.js", data, self._repr_png_(), self.title)
