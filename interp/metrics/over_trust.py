"""The over-trust penalty of OPERA: how much of what follows hangs on a single earlier token.

Huang et al., CVPR 2024, arXiv 2311.17911.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def over_trust(
    omega: Float[Tensor, "row query key"], sigma: float
) -> tuple[Float[Tensor, " row"], Int[Tensor, " row"]]:
    """`phi` and its column: the largest product down a column of the scaled, lower triangular attention."""
    below = torch.ones(omega.shape[1:], dtype=torch.bool, device=omega.device).tril()
    best = (sigma * omega.double()).masked_fill(~below, 1.0).prod(1).max(-1)
    return best.values.clamp(max=1e30), best.indices  # finite, so that beams stay comparable
