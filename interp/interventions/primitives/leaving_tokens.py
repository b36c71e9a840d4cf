"""Tokens that leave the sequence at a layer, while the prompt is read: no later layer computes anything for them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.models import LVLM
from interp.models.compat import adds_between_layers, layer_input

TOKEN_AXIS = {"attention_mask": -1, "position_ids": -1, "position_embeddings": -2}
"""What a layer is given beside the hidden states that has an entry for each token, and its axis."""


def can_leave(model: LVLM) -> bool:
    """Whether the layers take any tokens: none counts places in a window, nothing is added to image tokens between."""
    decoder = model.hf.get_submodule(model.family.layers.rpartition(".")[0])
    return not adds_between_layers(decoder) and all(
        getattr(config, "sliding_window", None) is None for config in model.decoder_configs
    )


class LeavingTokens:
    """From layer `first` on only the tokens go on that `stays()` names, where it names as many in each row.

    `order` are their places `[row, kept]` once they have been chosen.
    """

    def __init__(self, model: LVLM, first: int, stays: Callable[[], Bool[Tensor, "row token"] | None]) -> None:
        self.model, self.first, self.stays = model, first, stays
        self.order: Int[Tensor, "row kept"] | None = None
        self.n = 0

    @contextmanager
    def open(self, cache: Any) -> Iterator[None]:
        """While open, tokens leave; the layers of `cache` (`NotedLayer`) count them as seen."""

        def enter(layer: int) -> Any:
            def before(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
                hidden = layer_input(args, kwargs)
                if layer == self.first and any(value is cache for value in kwargs.values()):
                    self._choose(hidden)
                if self.order is None or not self.n:
                    return None
                moved = {
                    name: _at(kwargs[name], self.order, axis) for name, axis in TOKEN_AXIS.items() if name in kwargs
                }
                if layer != self.first:
                    return args, kwargs | moved
                hidden = _at(hidden, self.order, -2)
                if args:
                    return (hidden, *args[1:]), kwargs | moved
                return args, kwargs | moved | {"hidden_states": hidden}

            return before

        def leave(layer: int) -> Any:
            def after(*_: Any) -> None:
                if self.n:
                    cache.layers[layer].seen = self.n
                if layer == self.model.n_layers - 1:
                    self.n = 0

            return after

        with ExitStack() as stack:
            for layer in range(self.first, self.model.n_layers):
                module = self.model.layer(layer)
                stack.callback(module.register_forward_pre_hook(enter(layer), with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(leave(layer)).remove)
            yield

    def _choose(self, hidden: Tensor) -> None:
        """At the first layer of a pass: which tokens go on, if any are to leave."""
        stays = self.stays() if self.model.now.name == "main" and hidden.shape[1] > 1 else None
        if stays is None or stays.shape != hidden.shape[:2] or len(set(stays.sum(-1).tolist())) > 1:
            return
        self.n = hidden.shape[1]
        self.order = (~stays).int().argsort(dim=-1, stable=True)[:, : int(stays[0].sum())].to(hidden.device)


def _at(value: Any, order: Int[Tensor, "row kept"], axis: int) -> Any:
    """Some of the tokens of what a layer is given; rows lie before the tokens, a mask's queries before its keys."""
    if isinstance(value, tuple):
        return tuple(_at(part, order, axis) for part in value)
    if not isinstance(value, Tensor):
        return value
    order = order.to(value.device)
    if value.ndim == 4 and axis == -1:  # a mask of queries and keys
        of, rows = value.expand(len(order), -1, -1, -1), torch.arange(len(order), device=order.device)
        return of[rows[:, None, None], :, order[:, :, None], order[:, None]].movedim(-1, 1)
    index = order if axis == -1 else order[..., None]
    lead = value.shape[: value.ndim - index.ndim]
    of = value.expand(*lead, len(order), *value.shape[len(lead) + 1 :])
    return of.take_along_dim(index.expand(*lead, *index.shape), axis)
