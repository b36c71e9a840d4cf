"""Direct logit attribution: what each head's output alone adds to the logits of some words.

nostalgebraist, "interpreting GPT: the logit lens", 2020; Elhage et al., "A Mathematical Framework for Transformer
Circuits", 2021.  A head's output goes through the output projection, the decoder's last norm with its denominator held
at the value it has, and the language-model head; what later layers make of it is left out, and so is a soft cap.
"""

from collections.abc import Sequence
from operator import attrgetter

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.interventions import head_results
from interp.models import LVLM, Inputs, read


def word_ids(model: LVLM, words: Sequence[str]) -> Int[Tensor, " word"]:
    """The first token of each word, as it is written after a space."""
    ids = [model.tokenizer(f" {word}", add_special_tokens=False).input_ids for word in words]
    blank = model.tokenizer(" ", add_special_tokens=False).input_ids
    first = [i[len(blank)] if i[: len(blank)] == blank and len(i) > len(blank) else i[0] for i in ids]
    return torch.tensor(first, device=model.device)


@torch.no_grad()
def head_logits(
    model: LVLM, inputs: Inputs, positions: Int[Tensor, "batch position"], ids: Int[Tensor, " word"]
) -> Float[Tensor, "batch layer position head word"]:
    """What each head adds to the logits of the words `ids` at some positions."""
    found = read(
        model,
        inputs,
        ["z", "resid_post"],
        positions=positions,
        reduce=lambda site, layer, x: x if site == "z" or layer == model.n_layers - 1 else None,
    )
    stream = found["resid_post"][:, 0].float()
    norm = attrgetter(model.family.final_norm)(model.hf)
    bias = getattr(norm, "bias", None)
    centre = (lambda x: x - x.mean(-1, keepdim=True)) if bias is not None else (lambda x: x)
    normed = norm(stream.to(model.dtype)).float() - (0 if bias is None else bias.float())
    slope = (normed / centre(stream))[:, :, None]  # gain over denominator
    unembed = model.hf.get_output_embeddings().weight[ids.to(model.device)].float()
    layers = []
    for layer in range(model.n_layers):
        written = head_results(model, found["z"][:, layer], layer).float()
        layers.append((centre(written) * slope) @ unembed.T.to(written.device))
    return torch.stack([layer.to(model.device) for layer in layers], 1)
