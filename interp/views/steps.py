"""Where heads look at each step of a caption, to step through in a notebook."""

import base64
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from interp.models import LVLM, Head, Heads, Inputs, read
from interp.models.layout import layout
from interp.pictures import picture_uri
from interp.views.markup import figure_png, interactive
from interp.views.overlay import coarse

PANELS = 6
"""Steps of the static picture."""


@dataclass(frozen=True, repr=False)
class OverlaySteps:
    """Attention over a picture at the step that predicts each token: `maps` sum to `mass`, the share on the picture."""

    picture: Image.Image
    tokens: tuple[str, ...]
    maps: Float[np.ndarray, "token row column"]
    mass: Float[np.ndarray, " token"]
    heads: str

    @property
    def shown(self) -> list[int]:
        """The steps of the static picture: those that look at the picture's places most unevenly, in order."""
        order = np.argsort(-self.maps.max((1, 2)), kind="stable")[:PANELS]
        return sorted(order.tolist())

    def __repr__(self) -> str:
        return f"OverlaySteps({self.heads}, {len(self.tokens)} tokens)"

    def _repr_png_(self) -> bytes:
        """Some steps side by side."""
        some = self.shown
        _, axes = plt.subplots(1, len(some), figsize=(2.2 * len(some), 2.6), layout="constrained", squeeze=False)
        for ax, i in zip(axes[0], some, strict=True):
            ax.imshow(self.picture.convert("L"), cmap="gray", extent=(0, 1, 0, 1), vmin=-255)
            ax.imshow(self.maps[i], cmap="magma", alpha=0.5, extent=(0, 1, 0, 1), interpolation="nearest")
            ax.set_title(f"{self.tokens[i].strip()!r}\n{100 * self.mass[i]:.0f} % on it", fontsize=9)
            ax.set_axis_off()
        return figure_png(list(axes[0]))

    def _repr_html_(self) -> str:
        """A slider over the tokens; some steps side by side where no script may run."""
        most = self.maps.max((1, 2))
        scaled = np.round(255 * self.maps / np.maximum(most, 1e-12)[:, None, None]).astype(np.uint8)
        data: dict[str, Any] = {
            "picture": picture_uri(self.picture, 320),
            "tokens": list(self.tokens),
            "grid": list(self.maps.shape[1:]),
            "maps": base64.b64encode(scaled.tobytes()).decode(),
            "mass": np.round(self.mass, 4).tolist(),
            "most": np.round(most, 4).tolist(),
            "heads": self.heads,
            "start": self.shown[0],
            "alt": "the picture, dark where the heads do not look",
        }
        return interactive("steps.js", data, self._repr_png_(), f"where {self.heads} look at some steps of the caption")


def overlay_steps(
    model: LVLM, inputs: Inputs, caption: Int[Tensor, " token"], heads: Heads | None = None
) -> OverlaySteps:
    """Where heads (None: the mean of all) look at each step that predicts a token of a caption, on the first picture.

    `inputs` is a batch of one; ValueError for more, and where image tokens have no place.
    """
    if len(inputs.input_ids) != 1:
        raise ValueError(f"steps are drawn for a batch of one, got {len(inputs.input_ids)}")
    chosen, n = Head.of_model(heads, model), inputs.input_ids.shape[1]
    pieces = layout(model, inputs)[0]
    steps = torch.arange(n - 1, n - 1 + len(caption), device=model.device)[None]
    layers = torch.tensor([h.layer for h in chosen]), torch.tensor([h.head for h in chosen])
    pattern = read(model, inputs.extended([caption]), "pattern", positions=steps)["pattern"][0].float().cpu()
    mean = pattern[layers[0], layers[1]].mean(0).numpy()  # [step, key]
    maps = np.stack([coarse(pieces, row) for row in mean])
    tokens = tuple(model.tokenizer.decode([i]) for i in caption.tolist())
    named = "all heads" if heads is None else ", ".join(map(str, chosen))
    return OverlaySteps(inputs.pictures[0][0], tokens, maps, maps.sum((1, 2)), named)
