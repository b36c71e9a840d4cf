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

    made: dict[int, tuple[tuple[Any, ...], Tensor]] = {}

    def factors(layer: int, like: Tensor) -> Tensor:
        """The factors of a layer, as wide as head outputs; made once for as long as `scale` and the rows stay."""
        lasting = not (scale.requires_grad or scale.is_inference()) and model.now.prompts is None
        key = (len(like), like.dtype, like.device, scale._version) if lasting else ()
        if lasting and layer in made and made[layer][0] == key:
            return made[layer][1]
        rows = model.now.prompt_of(len(like), len(scale)).to(scale.device)
        factor = scale[rows if len(scale) > 1 else rows * 0, layer].to(like)
        made[layer] = key, factor.repeat_interleave(model.d_head, -1)[:, None]
        return made[layer][1]

    def hook(layer: int) -> Any:
        def before(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
            if model.now.name not in passes:
                return None
            return (args[0] * factors(layer, args[0]),)

        return before

    with ExitStack() as stack:
        for layer in range(model.n_layers):
            if scale.requires_grad or (scale[:, layer] != 1).any():
                handle = model.out_proj(layer).register_forward_pre_hook(hook(layer))
                stack.callback(handle.remove)
        yield
