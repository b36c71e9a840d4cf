"""Masks of one's own for a pass of a whole model: which query sees which key, where the model takes that."""

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import DynamicLayer

from interp.models import LVLM, Inputs
from interp.models.kernels import PREFIX

BACKENDS = ("sdpa", "eager")
"""Those that take a mask of queries and keys."""


def takes_masks(model: LVLM, inputs: Inputs, cache: Any) -> bool:
    """Whether a pass with this cache may be given a mask: layers without windows, text that is causal throughout."""
    return bool(
        model.backend.removeprefix(PREFIX) in BACKENDS
        and cache is not None
        and cache.layers
        and all(type(layer) is DynamicLayer for layer in cache.layers)
        and not inputs.token_types
        and not model.family.needs_pixels
    )


def as_taken(model: LVLM, mask: Bool[Tensor, "batch 1 query key"]) -> Tensor:
    """The mask as the backend takes it."""
    if model.backend.removeprefix(PREFIX) != "eager":
        return mask
    return torch.zeros_like(mask, dtype=model.dtype).masked_fill(~mask, torch.finfo(model.dtype).min)
