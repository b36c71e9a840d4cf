"""VHD: head outputs with the image and without it, in one traced pass.

The pass takes the batch and its image-free prompts side by side as rows, so an edit sees both streams of a layer at the
same time and may change them before the next layer runs.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.metrics.vhd import head_divergence
from interp.models import LVLM, Inputs, paired, run_with_edits


def streams(x: Float[Tensor, "rows *rest"]) -> tuple[Float[Tensor, "batch *rest"], Float[Tensor, "batch *rest"]]:
    """The two streams of a paired batch: with the image, without it."""
    return x[0::2], x[1::2]


def vhd(model: LVLM, inputs: Inputs, image_free: str = "remove") -> Float[Tensor, "batch layer head"]:
    """Vision-aware head divergence of the first generation step (VHD, eq. 4): at the last prompt position.

    `image_free` says how the image is taken away (`interp.models.image_free`).
    """
    seen: list[Tensor] = []

    def measure(_: int, z: Tensor) -> None:
        seen.append(head_divergence(*streams(z[:, -1])).to(model.device))

    run_with_edits(model, paired(model, inputs, image_free), {"z": measure})
    return torch.stack(seen, dim=1)


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

    One pass over both streams, aligned on the caption's tokens; equal to computing VHD step by step.
    """
    for row, caption in enumerate(captions):
        if not len(caption):
            raise ValueError(f"expected at least one token in each caption, got an empty one in row {row}")
    longest = max(len(c) for c in captions)
    steps = slice(-longest - 1, -1)  # the position before a token predicts it
    seen: list[Tensor] = []

    def measure(_: int, z: Tensor) -> None:
        seen.append(head_divergence(*streams(z[:, steps])).to(model.device))

    both = paired(model, inputs, image_free, captions)
    with ExitStack() as stack:
        if not model.remote:  # what the image-free rows would say is not asked, and the head is large
            head = model.hf.get_output_embeddings()
            stack.callback(head.register_forward_pre_hook(lambda _, args: streams(args[0])[:1]).remove)
        logits = run_with_edits(model, both, {"z": measure}, keep=longest + 1)
    logits = (streams(logits)[0] if model.remote else logits)[:, steps]
    divergence = torch.stack(seen, dim=2)
    traces = []
    for row, caption in enumerate(captions):
        n = len(caption)
        logit = logits[row, :n].float()
        written = logit.gather(-1, caption.to(logit.device)[:, None])[:, 0]
        traces.append(TokenTrace(divergence[row, :n], (written - logit.logsumexp(-1)).exp()))
    return traces
