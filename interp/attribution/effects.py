"""What each head does for a word: its contribution to the word's log-probability, exactly and by one backward pass.

The contribution of a head is `log p(word) - log p(word | head silenced)`: positive where the head pushes the word.

- exactly: a forward pass for each head, its output multiplied by 0;
- by attribution patching: the slope of `log p(word)` by each head's output times that output, which is the exact value
  to first order; one backward pass for all heads (`interp.models.differentiable`).  Nanda, "Attribution Patching",
  2023; Syed et al., arXiv 2310.10348.

Both are computed in two streams, with the image and without it: their difference is what a head does through the image.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.interventions import scaled_heads
from interp.models import LVLM, Inputs, differentiable, paired
from interp.trace.divergence import streams


def _log_p(both: Inputs, logits: Float[Tensor, "row keep vocabulary"]) -> Float[Tensor, "row token"]:
    """Log-probability of every caption token, 0 after a caption's end; `keep` is one more than the tokens."""
    longest = logits.shape[1] - 1
    ids, written = both.input_ids[:, -longest:, None], both.attention_mask[:, -longest:].bool()
    log_p = logits[:, :-1].float().log_softmax(-1).gather(-1, ids.to(logits.device))[..., 0]
    return log_p.masked_fill(~written.to(log_p.device), 0.0)


@torch.no_grad()
def exact_contributions(
    model: LVLM, inputs: Inputs, captions: Sequence[Int[Tensor, " _"]], image_free: str = "remove"
) -> Float[Tensor, "batch stream token layer head"]:
    """The contribution of each head to each token of finished captions; stream 0 has the image, 1 has not.

    Runs `n_layers x n_heads` passes over the batch and its image-free prompts.  Raises ValueError for empty captions.
    """
    _check(captions)
    both = paired(model, inputs, image_free, captions)
    ones = torch.ones(1, model.n_layers, model.n_heads, device=model.device)
    keep = max(len(c) for c in captions) + 1

    def scaled(scale: Tensor) -> Tensor:
        with scaled_heads(model, scale):
            return _log_p(both, model.hf(**both.kwargs(), use_cache=False, logits_to_keep=keep).logits)

    whole = scaled(ones)
    found = whole.new_zeros(*whole.shape, model.n_layers, model.n_heads)
    for layer in range(model.n_layers):
        for head in range(model.n_heads):
            scale = ones.clone()
            scale[:, layer, head] = 0.0
            found[..., layer, head] = whole - scaled(scale)
    return torch.stack(streams(found), 1)


def attributed_contributions(
    model: LVLM,
    inputs: Inputs,
    captions: Sequence[Int[Tensor, " _"]],
    tokens: Sequence[Sequence[int]],
    image_free: str = "remove",
) -> list[Float[Tensor, "token stream layer head"]]:
    """The same to first order, for the chosen `tokens` of each caption: one backward pass for the i-th of all rows."""
    _check(captions)
    both = paired(model, inputs, image_free, captions)
    graph = differentiable(model, both, "z", keep=max(len(c) for c in captions) + 1)
    log_p, z = _log_p(both, graph.logits), graph.values["z"]
    found: list[list[Tensor]] = [[] for _ in captions]
    for turn in range(max((len(chosen) for chosen in tokens), default=0)):
        rows = [row for row, chosen in enumerate(tokens) if turn < len(chosen)]
        total = sum((log_p[[2 * row, 2 * row + 1], tokens[row][turn]].sum() for row in rows), log_p.new_zeros(()))
        slope = (graph.slopes(total)["z"] * z).sum((2, 4))
        for row in rows:
            found[row].append(slope[2 * row : 2 * row + 2])
    nothing = z.new_zeros(0, 2, model.n_layers, model.n_heads)
    return [torch.stack(f) if f else nothing for f in found]


def _check(captions: Sequence[Int[Tensor, " _"]]) -> None:
    for row, caption in enumerate(captions):
        if not len(caption):
            raise ValueError(f"expected at least one token in each caption, got an empty one in row {row}")
