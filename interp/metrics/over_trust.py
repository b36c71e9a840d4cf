"""The over-trust penalty of OPERA: how much of what follows hangs on a single earlier token.

Huang et al., CVPR 2024, arXiv 2311.17911; shikiw/OPERA, `opera_beam_search`.  `omega` is the largest attention over
heads, rows normalised again over all keys; of it the part among generated tokens.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

UNIT = 1e-7
"""What the released code multiplies a product by."""
SHORT = 10
"""Tokens of a text among which the released code rewards attention to the picture instead."""


def _columns(omega: Float[Tensor, "row query key"], sigma: float) -> Float[Tensor, "row key"]:
    """The product down each column of the scaled, lower triangular attention, in float64."""
    below = torch.ones(omega.shape[1:], dtype=torch.bool, device=omega.device).tril()
    return (sigma * omega.double()).masked_fill(~below, 1.0).prod(1)


def over_trust(
    omega: Float[Tensor, "row query key"], sigma: float
) -> tuple[Float[Tensor, " row"], Int[Tensor, " row"]]:
    """`phi` of the paper and its column: the largest product down a column."""
    best = _columns(omega, sigma).max(-1)
    return best.values.clamp(max=1e30), best.indices  # finite, so that beams stay comparable


def released_over_trust(
    omega: Float[Tensor, "row query key"], looks: Float[Tensor, " row"], sigma: float
) -> tuple[Float[Tensor, " row"], Int[Tensor, " row"]]:
    """The released code's penalty and its column: `UNIT` times the product, held in float16, hence 0 or infinite.

    In a text of at most `SHORT` tokens the penalty is minus what the last token pays to the picture, `looks`.
    """
    best = (UNIT * _columns(omega, sigma)).half().double().max(-1)
    return (-looks.double() if omega.shape[1] <= SHORT else best.values), best.indices
