"""Scaling head outputs while a model runs, natively."""

from collections.abc import Container, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from interp.models import LVLM, PASSES


@contextmanager
def scaled_heads(
    model: LVLM, scale: Float[Tensor, "batch layer head"], passes: Container[str] = PASSES
) -> Iterator[None]:
    """While open, multiply the output of every head, at every position of the named passes, by its factor.

    Row i of `scale` serves prompt i of the batch: row i, its copies where there are beams or several returned
    sequences, and whatever row a pass says goes on with it; a single row serves all.  Layers whose factors are all 1
    are left alone, unless gradients are wanted.
    """
    if scale.shape[1:] != (model.n_layers, model.n_heads):
        raise ValueError(
            f"expected factors [batch, {model.n_layers} layers, {model.n_heads} heads], got {list(scale.shape)}"
        )

    def hook(layer: int) -> Any:
        def before(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
            if model.now.name not in passes:
                return None
            rows = model.now.prompt_of(args[0].shape[0], len(scale)).to(scale.device)
            factor = scale[rows if len(scale) > 1 else rows * 0, layer].to(args[0])
            return ((model.by_head(args[0]) * factor[:, None, :, None]).flatten(-2),)

        return before

    with ExitStack() as stack:
        for layer in range(model.n_layers):
            if scale.requires_grad or (scale[:, layer] != 1).any():
                handle = model.out_proj(layer).register_forward_pre_hook(hook(layer))
                stack.callback(handle.remove)
        yield
