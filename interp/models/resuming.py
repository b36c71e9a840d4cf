"""Running only the upper layers: the residual stream before a layer is kept from one pass and put into others.

A pass that changes something in a layer finds everything below as it was, so nothing below needs to run again.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor

from interp.models.compat import layer_input
from interp.models.lvlm import LVLM


class Resting:
    """What went into each layer of a pass, and in what form each layer gives what it makes."""

    def __init__(self) -> None:
        self.into: list[Float[Tensor, "batch token d_model"]] = []
        self.outputs: list[int] = []
        """How many things a layer returns, 0 where it returns the stream alone."""


@contextmanager
def resting(model: LVLM) -> Iterator[Resting]:
    """While open, one pass may run, of which the streams are kept."""
    kept = Resting()

    def before(_: Any, args: Any, kwargs: Any) -> None:
        kept.into.append(layer_input(args, kwargs).detach())

    def after(_: Any, __: Any, output: Any) -> None:
        kept.outputs.append(len(output) if isinstance(output, tuple) else 0)

    with ExitStack() as stack:
        for layer in range(model.n_layers):
            stack.callback(model.layer(layer).register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(model.layer(layer).register_forward_hook(after).remove)
        yield kept


@contextmanager
def resumed(model: LVLM, layer: int, kept: Resting, copies: int) -> Iterator[None]:
    """While open, passes over `copies` times the rows begin at a layer, with its stream of the pass that was kept.

    Rows are the batch's, all of them once for each copy.  What the model does before its layers still runs, and is
    thrown away: give it no pictures.
    """
    stream = kept.into[layer].repeat(copies, 1, 1)

    def idle(n: int) -> Any:
        return lambda *args, **kwargs: (
            (layer_input(args, kwargs), *[None] * (n - 1)) if n else layer_input(args, kwargs)
        )

    def begin(_: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return ((stream, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": stream})

    with ExitStack() as stack:
        for below in range(layer):
            module = model.layer(below)
            own = module.__dict__.get("forward")
            module.__dict__["forward"] = idle(kept.outputs[below])
            stack.callback(_put_back, module, own)
        stack.callback(model.layer(layer).register_forward_pre_hook(begin, with_kwargs=True).remove)
        yield


def _put_back(module: Any, forward: Any) -> None:
    if forward is None:
        del module.__dict__["forward"]
    else:
        module.__dict__["forward"] = forward
