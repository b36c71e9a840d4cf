"""Vision-aware head divergence (VHD) and its sum over the strongest heads for each token (T-VHD).

He et al., "Cracking the Code of Hallucination in LVLMs with Vision-aware Head Divergence", ACL 2025,
arXiv 2412.13949, eqs. 4 and 5.

Symbols: `A[l,i](y_t | y_<t, x_V, x_T)` is `with_image`, the output of head i of layer l before the output
projection; `A[l,i](y_t | y_<t, x_T)` is `without_image`, the same text with the image removed; `k` is `top_k`.
Deviation: the paper gives no `k`; the default here is an eighth of the heads of a layer, at least one.
"""

from jaxtyping import Float
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
