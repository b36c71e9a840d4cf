"""Proposition 1 of VHR, measured: scaling a head brings the residual stream nearer to what the head writes.

He et al., ACL 2025, arXiv 2412.13949.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from interp.models import LVLM, Inputs, head_results, read


@torch.no_grad()
def alignment(model: LVLM, inputs: Inputs, alpha: float = 2.0) -> Float[Tensor, "2 batch layer head"]:
    """Proposition 1, measured at the last prompt position: `cos(Z, Z_h)` before and after head h alone is scaled.

    `Z` is the residual stream after attention as the MLP's norm gives it, `Z_h` what the norm gives for head h's
    contribution alone.
    """
    found = read(model, inputs, ["resid_pre", "attn_out", "z"], positions=inputs.last[:, None])
    cosines = []
    for layer in range(model.n_layers):
        norm = model.part(layer, model.family.mlp_norm)
        stream = (found["resid_pre"][:, layer, 0] + found["attn_out"][:, layer, 0])[:, None]
        alone = head_results(model, found["z"][:, layer, 0], layer)
        both = [norm(stream + (factor - 1) * alone) for factor in (1.0, alpha)]
        cosines.append(torch.stack([torch.cosine_similarity(z, norm(alone), dim=-1).float() for z in both]))
    return torch.stack(cosines, 2)
