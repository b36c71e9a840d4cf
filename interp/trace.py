"""Looking inside: head outputs at chosen positions, with the image and without it, in one traced pass.

A traced pass puts the batch and its image-free twin side by side as rows of one forward pass, so a
callback sees both streams of a layer at the same time and may edit them before the next layer runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.metrics.vhd import head_divergence
from interp.models.inputs import Embedded, Inputs, interleave
from interp.models.lvlm import LVLM

Visit = Callable[[int, Float[Tensor, "batch token head d_head"]], Tensor | None]
"""Called with a layer and its head outputs; a returned tensor of the same shape replaces them."""


def visit_heads(
    model: LVLM, batch: Inputs | Embedded, visit: Visit, keep: int = 1
) -> Float[Tensor, "batch keep vocabulary"]:
    """Run one forward pass and call `visit` with each layer's head outputs, in order.

    Returns the logits of the last `keep` positions.
    """
    logits: list[Tensor] = []
    with torch.no_grad(), model.traced.trace(**batch.forward_kwargs(), use_cache=False, logits_to_keep=keep):
        for layer in range(model.n_layers):
            projection = model.out_proj(layer, model.traced)
            edited = visit(layer, model.by_head(projection.input))
            if edited is not None:
                projection.input = edited.flatten(-2)
        logits.append(model.traced.output.logits)
    return logits[0]


def head_outputs(
    model: LVLM, inputs: Inputs, positions: Int[Tensor, "batch position"] | None = None
) -> Float[Tensor, "batch position layer head d_head"]:
    """The output of every head before the output projection, at chosen positions (default: each row's last token).

    This is `A[l,i] = softmax(QK^T / sqrt(d)) V` of the VHD paper (arXiv 2412.13949, section 3), for one forward pass.
    """
    at = inputs.last[:, None] if positions is None else positions
    rows = torch.arange(len(at), device=at.device)[:, None]
    seen: list[Tensor] = []

    def capture(_: int, z: Tensor) -> None:
        seen.append(z[rows, at].clone())

    visit_heads(model, inputs, capture)
    return torch.stack(seen, dim=2)


def streams(x: Float[Tensor, "rows *rest"]) -> tuple[Float[Tensor, "batch *rest"], Float[Tensor, "batch *rest"]]:
    """The two streams of a paired batch: with the image, without it."""
    return x[0::2], x[1::2]


def pair(model: LVLM, inputs: Inputs, continuations: Sequence[Int[Tensor, " _"]] | None = None) -> Embedded:
    """A batch and its image-free twin as one batch, both followed by the same continuations if any are given.

    Each row is followed by its twin (so that an edit which repeats a row's factors for its copies serves both);
    the streams are aligned on the right: the same text stands at the same index.
    """
    twin = inputs.without_image()
    if continuations is not None:
        inputs, twin = inputs.extended(continuations), twin.extended(continuations)
    return interleave(model.embed(inputs), model.embed(twin))


def vhd(model: LVLM, inputs: Inputs) -> Float[Tensor, "batch layer head"]:
    """Vision-aware head divergence of the first generation step (VHD, eq. 4): at the last prompt position."""
    seen: list[Tensor] = []

    def measure(_: int, z: Tensor) -> None:
        seen.append(head_divergence(*streams(z[:, -1])))

    visit_heads(model, pair(model, inputs), measure)
    return torch.stack(seen, dim=1)


@dataclass(frozen=True)
class TokenTrace:
    """How a caption's tokens came about, teacher-forced.

    `vhd` is `[token, layer, head]` at the step that predicts each token; `probability` `[token]` is what the
    model, seeing the image, gave the token.
    """

    vhd: Float[Tensor, "token layer head"]
    probability: Float[Tensor, " token"]


def token_vhd(model: LVLM, inputs: Inputs, captions: Sequence[Int[Tensor, " _"]]) -> list[TokenTrace]:
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
        seen.append(head_divergence(*streams(z[:, steps])))

    logits, _ = streams(visit_heads(model, pair(model, inputs, captions), measure, keep=longest + 1)[:, steps])
    divergence = torch.stack(seen, dim=2)
    traces = []
    for row, caption in enumerate(captions):
        n = len(caption)
        logit = logits[row, :n].float()
        written = logit.gather(-1, caption.to(logit.device)[:, None])[:, 0]
        traces.append(TokenTrace(divergence[row, :n], (written - logit.logsumexp(-1)).exp()))
    return traces
