"""VHD: head outputs with the image and without it, in two traced passes.

Each stream is read as it is: side by side as rows of one batch, the image-free one would be padded to the length of the
other.  A method that changes a layer by what both streams give there (VHR) has to have them side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.metrics.vhd import head_divergence
from interp.models import LVLM, Inputs, run_with_edits
from interp.models import image_free as without_image


def streams(x: Float[Tensor, "rows *rest"]) -> tuple[Float[Tensor, "batch *rest"], Float[Tensor, "batch *rest"]]:
    """The two streams of a paired batch: with the image, without it."""
    return x[0::2], x[1::2]


def vhd(model: LVLM, inputs: Inputs, image_free: str = "remove") -> Float[Tensor, "batch layer head"]:
    """Vision-aware head divergence of the first generation step (VHD, eq. 4): at the last prompt position.

    `image_free` says how the image is taken away (`interp.models.image_free`).
    """
    return _divergence(model, inputs, without_image(model, inputs, image_free), slice(-1, None))[0][:, 0]


def _divergence(
    model: LVLM, inputs: Inputs, without: Inputs, at: slice, keep: int = 1
) -> tuple[Float[Tensor, "batch token layer head"], Float[Tensor, "batch keep vocabulary"]]:
    """VHD at some positions, counted from the end of both batches; and the logits of the last `keep` with the image."""
    seen: list[Tensor] = []
    found: list[Tensor] = []

    def compare(_: int, z: Tensor) -> None:  # layers come in order, and what has been compared is let go
        found.append(head_divergence(seen.pop(0).to(z.device), z[:, at]).to(model.device))

    logits = run_with_edits(model, inputs, {"z": lambda _, z: seen.append(z[:, at].clone())}, keep)
    run_with_edits(model, without, {"z": compare})
    return torch.stack(found, dim=2), logits


@dataclass(frozen=True)
class TokenTrace:
    """How a caption's tokens came about, teacher-forced.

    `vhd` is `[token, layer, head]` at the step that predicts each token; `probability` `[token]` is what the
    model, seeing the image, gave the token.
    """

    vhd: Float[Tensor, "token layer head"]
    probability: Float[Tensor, " token"]


def token_vhd(
    model: LVLM, inputs: Inputs, captions: Sequence[Int[Tensor, " _"]], image_free: str = "remove"
) -> list[TokenTrace]:
    """VHD (eq. 4) for every token of finished captions, one `TokenTrace` a row.

    A pass over each stream, aligned on the caption's tokens; equal to computing VHD step by step.
    """
    for row, caption in enumerate(captions):
        if not len(caption):
            raise ValueError(f"expected at least one token in each caption, got an empty one in row {row}")
    longest = max(len(c) for c in captions)
    steps = slice(-longest - 1, -1)  # the position before a token predicts it
    without = without_image(model, inputs, image_free).extended(captions)
    found, logits = _divergence(model, inputs.extended(captions), without, steps, longest + 1)
    logits = logits[:, steps]
    traces = []
    for row, caption in enumerate(captions):
        n = len(caption)
        logit = logits[row, :n].float()
        written = logit.gather(-1, caption.to(logit.device)[:, None])[:, 0]
        traces.append(TokenTrace(found[row, :n], (written - logit.logsumexp(-1)).exp()))
    return traces
