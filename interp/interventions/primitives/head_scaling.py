"""Scaling head outputs while a model runs, natively."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from interp.models import LVLM


@contextmanager
def scaled_heads(model: LVLM, scale: Float[Tensor, "batch layer head"]) -> Iterator[None]:
    """While open, multiply the output of every head, at every position, by its factor.

    Row i of `scale` serves row i of the batch; with beams or several returned sequences a row is repeated
    for each of its copies.  Layers whose factors are all 1 are left alone, unless gradients are wanted.
    """
    if scale.shape[1:] != (model.n_layers, model.n_heads):
        raise ValueError(
            f"expected factors [batch, {model.n_layers} layers, {model.n_heads} heads], got {list(scale.shape)}"
        )

    def hook(layer: int) -> Any:
        def before(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            copies, rest = divmod(args[0].shape[0], scale.shape[0])
            if rest:
                raise ValueError(f"factors for {scale.shape[0]} rows cannot serve a batch of {args[0].shape[0]}")
            factor = scale[:, layer].repeat_interleave(copies, 0).to(args[0])
            return ((model.by_head(args[0]) * factor[:, None, :, None]).flatten(-2),)

        return before

    with ExitStack() as stack:
        for layer in range(model.n_layers):
            if scale.requires_grad or (scale[:, layer] != 1).any():
                handle = model.out_proj(layer).register_forward_pre_hook(hook(layer))
                stack.callback(handle.remove)
        yield
