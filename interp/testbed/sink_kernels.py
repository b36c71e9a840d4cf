"""Attention kernels that differ in where a head may put attention that it does not need.

Registered with transformers' attention interface as `interp-NAME`, so that any Llama configuration takes them.

Gu et al., "When Attention Sink Emerges in Language Models: An Empirical View", arXiv 2410.10781, section 7 (`sigmoid`
with and without normalisation, `key-bias`: a learnable key k* whose value is zero); gpt-oss (OpenAI, arXiv 2508.10925;
`sink-logit`: a learnable logit for each head in the softmax's denominator).  What the paper leaves open: k* is one for
each query head, is not rotated, and begins at zero, as the logit does.
"""

from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

Kernel = Literal["softmax", "sigmoid", "sigmoid-normalised", "key-bias", "sink-logit"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)
PREFIX = "sinks-"
PARAMETER: dict[Kernel, str] = {"key-bias": "sink_key", "sink-logit": "sink_logit"}
"""The parameter that a kernel adds to each attention module: `[head, d_head]` and `[head]`."""


def probabilities(
    kernel: Kernel,
    module: nn.Module,
    query: Float[Tensor, "batch head query d_head"],
    scores: Float[Tensor, "batch head query key"],
    scaling: float,
) -> Float[Tensor, "batch head query key"]:
    """What each key gets; `scores` are scaled, minus infinity where a key cannot be seen.

    With `sigmoid` a row's sum is free; with `key-bias` and `sink-logit` it is one less what the bias takes.
    """
    if kernel == "sigmoid":
        return scores.sigmoid()
    if kernel == "sigmoid-normalised":
        given = scores.sigmoid()
        return given / given.sum(-1, keepdim=True)
    if kernel == "softmax":
        return scores.softmax(-1)
    own: Tensor = getattr(module, PARAMETER[kernel])
    extra = (query * own[:, None]).sum(-1, keepdim=True) * scaling if kernel == "key-bias" else own[:, None, None]
    extra = extra.expand(*scores.shape[:-1], 1).to(scores.dtype)
    return torch.cat([scores, extra], -1).softmax(-1)[..., :-1]


def _attend(kernel: Kernel) -> Any:
    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float,
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (key, value))
        scores = (query @ key.mT) * scaling
        n, keys = scores.shape[-2:]
        hidden = torch.ones(n, keys, dtype=torch.bool, device=scores.device).triu(keys - n + 1)
        scores = scores.masked_fill(hidden if attention_mask is None else ~attention_mask[..., :keys], -torch.inf)
        pattern = probabilities(kernel, module, query, scores, scaling)
        return (pattern @ value).transpose(1, 2).contiguous(), pattern

    return attend


def use_kernel(model: Any, kernel: Kernel) -> Any:
    """Give a Llama-like model one of the kernels, with its parameter in every attention module; returns the model."""
    AttentionInterface.register(PREFIX + kernel, _attend(kernel))
    AttentionMaskInterface.register(PREFIX + kernel, sdpa_mask)
    config = model.config.get_text_config()
    if kernel in PARAMETER:
        d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (config.num_attention_heads, d_head) if kernel == "key-bias" else (config.num_attention_heads,)
        for layer in model.model.layers:
            zeros = torch.zeros(shape, dtype=model.dtype, device=model.device)
            layer.self_attn.register_parameter(PARAMETER[kernel], nn.Parameter(zeros))
    model.set_attn_implementation(PREFIX + kernel)
    return model
