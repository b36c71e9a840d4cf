"""What each head does for a word: its contribution to the word's log-probability, exactly and by one backward pass.

The contribution of a head is `log p(word) - log p(word | head silenced)`: positive where the head pushes the word.

- exactly: its output multiplied by 0, many heads of a layer as rows of one pass, which begins at that layer
  (`step_by_step`: a whole pass for each head, the slow way to the same);
- by attribution patching: the slope of `log p(word)` by each head's output times that output, which is the exact value
  to first order; one backward pass for all heads (`interp.models.differentiable`).  Nanda, "Attribution Patching",
  2023; Syed et al., arXiv 2310.10348.

Both are computed in two streams, with the image and without it: their difference is what a head does through the image.
"""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.interventions import scaled_heads
from interp.models import LVLM, Inputs, differentiable, paired
from interp.models import image_free as without_pictures
from interp.models.compat import untraced
from interp.models.resuming import resting, resumed
from interp.trace.divergence import streams

LOGITS = 2**25
"""How many logits a pass over many heads may hold at once."""
PROVEN = 1e-3
"""How far log-probabilities of a pass that begins at a layer may lie from those of a whole pass."""


def _log_p(both: Inputs, logits: Float[Tensor, "row keep vocabulary"]) -> Float[Tensor, "row token"]:
    """Log-probability of every caption token, 0 after a caption's end; `keep` is one more than the tokens."""
    longest = logits.shape[1] - 1
    ids, written = both.input_ids[:, -longest:, None], both.attention_mask[:, -longest:].bool()
    log_p = logits[:, :-1].float().log_softmax(-1).gather(-1, ids.to(logits.device))[..., 0]
    return log_p.masked_fill(~written.to(log_p.device), 0.0)


@torch.no_grad()
def exact_contributions(
    model: LVLM,
    inputs: Inputs,
    captions: Sequence[Int[Tensor, " _"]],
    image_free: str = "remove",
    step_by_step: bool = False,
) -> Float[Tensor, "batch stream token layer head"]:
    """The contribution of each head to each token of finished captions; stream 0 has the image, 1 has not.

    Raises ValueError for empty captions.
    """
    _check(captions)
    if step_by_step or model.family.needs_pixels:
        both = paired(model, inputs, image_free, captions)
        found = _one_by_one(model, both, range(model.n_layers), max(len(c) for c in captions))
        return torch.stack(streams(found), 1)
    prompts = (inputs, without_pictures(model, inputs, image_free))
    return torch.stack([_together(model, p.extended(captions), max(len(c) for c in captions)) for p in prompts], 1)


def _one_by_one(
    model: LVLM, whole: Inputs, layers: Iterable[int], longest: int
) -> Float[Tensor, "row token layer head"]:
    """Contributions of all heads of some layers, a whole pass for each head."""
    ones = torch.ones(1, model.n_layers, model.n_heads, device=model.device)

    def scaled(scale: Tensor) -> Tensor:
        with scaled_heads(model, scale):
            return _log_p(whole, model.hf(**whole.kwargs(), use_cache=False, logits_to_keep=longest + 1).logits)

    plain, found = scaled(ones), []
    for layer in layers:
        for head in range(model.n_heads):
            scale = ones.clone()
            scale[:, layer, head] = 0.0
            found.append(plain - scaled(scale))
    return torch.stack(found, -1).unflatten(-1, (-1, model.n_heads))


def _together(model: LVLM, whole: Inputs, longest: int) -> Float[Tensor, "row token layer head"]:
    """The same, heads of a layer as rows of one pass that begins at the layer.

    The first row group of a layer is left alone.  Where it does not give what the plain pass gave, something else than
    the layers' input tells this model of the picture, and the layer is done the slow way.
    """
    keep, n = longest + 1, len(whole.input_ids)
    with model.in_use(), untraced(model.hf), resting(model) as kept:
        plain = _log_p(whole, model.hf(**whole.kwargs(), use_cache=False, logits_to_keep=keep).logits)
    size = max(1, LOGITS // (n * keep * model.hf.config.get_text_config().vocab_size))
    found = []
    for layer in range(model.n_layers):
        rows = []
        for heads in torch.arange(-1, model.n_heads).split(min(size, model.n_heads + 1)):
            scale = torch.ones(len(heads), n, model.n_layers, model.n_heads, device=model.device)
            scale[:, :, layer] = 1.0 - (heads[:, None] == torch.arange(model.n_heads)).float()[:, None].to(model.device)
            many = whole.repeated(len(heads))
            with (
                model.in_use(),
                untraced(model.hf),
                resumed(model, layer, kept, len(heads)),
                scaled_heads(model, scale.flatten(0, 1)),
            ):
                logits = model.hf(**many.kwargs(), use_cache=False, logits_to_keep=keep).logits
            rows.append(_log_p(many, logits).unflatten(0, (len(heads), n)))
        alone, *silenced = torch.cat(rows)
        if torch.allclose(alone, plain, atol=PROVEN, rtol=PROVEN):
            found.append(plain[..., None] - torch.stack(silenced, -1))
        else:
            found.append(_one_by_one(model, whole, [layer], longest)[..., 0, :])
    return torch.stack(found, -2)


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
