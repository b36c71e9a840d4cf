"""Vision-aware head divergence (VHD), its sum over the strongest heads (T-VHD), and the heads that VHR takes by it.

He et al., "Cracking the Code of Hallucination in LVLMs with Vision-aware Head Divergence", ACL 2025,
arXiv 2412.13949, eqs. 4 to 7.

Symbols: `A[l,i](y_t | y_<t, x_V, x_T)` is `with_image`, the output of head i of layer l before the output
projection; `A[l,i](y_t | y_<t, x_T)` is `without_image`, the same text with the image removed; `k` is `top_k`;
`TA[l,i] = ||A[l,i](no image)||^2` is `text_energy`; `H_l` is what `vision_aware_heads` gives.
Deviation: the paper gives no `k`; the default here is an eighth of the heads of a layer, at least one.
"""

from jaxtyping import Bool, Float
from torch import Tensor
from torch.linalg import vector_norm


def head_divergence(
    with_image: Float[Tensor, "*position head d_head"], without_image: Float[Tensor, "*position head d_head"]
) -> Float[Tensor, "*position head"]:
    """VHD (eq. 4): the Euclidean distance of a head's two outputs, in float32."""
    return vector_norm(with_image.float() - without_image.float(), dim=-1)


def default_top_k(n_heads: int) -> int:
    """How many heads of a layer T-VHD sums over unless told otherwise."""
    return max(1, n_heads // 8)


def token_divergence(vhd: Float[Tensor, "*token layer head"], top_k: int) -> Float[Tensor, "*token"]:
    """T-VHD (eq. 5): the `top_k` largest VHD of each layer, summed over layers.

    Raises ValueError if `top_k` is not between 1 and the number of heads.
    """
    if not 1 <= top_k <= vhd.shape[-1]:
        raise ValueError(f"top_k is between 1 and the {vhd.shape[-1]} heads of a layer, got {top_k}")
    return vhd.topk(top_k, dim=-1).values.sum(dim=(-1, -2))


def negative_outliers(
    vhd: Float[Tensor, "*batch head"], text_energy: Float[Tensor, "*batch head"], deviation: str = "sample"
) -> Bool[Tensor, "*batch head"]:
    """Heads that fire because the image is gone (eq. 6): both values above the layer's mean + standard deviation."""

    def high(x: Tensor) -> Tensor:
        return x > x.mean(-1, keepdim=True) + x.std(-1, keepdim=True, correction=deviation == "sample")

    return high(vhd) & high(text_energy)


def vision_aware_heads(
    vhd: Float[Tensor, "*batch head"],
    text_energy: Float[Tensor, "*batch head"],
    deviation: str = "sample",
    outliers: bool = True,
) -> Bool[Tensor, "*batch head"]:
    """`H_l` (eq. 7): heads whose VHD, outliers set to zero (unless not `outliers`), is above the layer's median."""
    cleaned = vhd.masked_fill(negative_outliers(vhd, text_energy, deviation), 0.0) if outliers else vhd
    return cleaned > cleaned.quantile(0.5, dim=-1, keepdim=True)
