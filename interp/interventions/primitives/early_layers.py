"""What earlier layers would say next, read by the head while the model writes."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from operator import attrgetter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import LogitsProcessor

from interp.models import LVLM, GenerateOptions
from interp.models.compat import layer_input

Combine = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Scores `[row, vocabulary]` from scores, the last layer's own log-probabilities, and early logits."""


class _Last(LogitsProcessor):
    """Keeps the last layer's own log-probabilities, before any method changes them."""

    def __init__(self) -> None:
        self.log_p = torch.empty(0)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.log_p = scores.float().log_softmax(-1)
        return scores


class EarlyLayers(LogitsProcessor):
    """Combines the scores with the logits of hidden states, as Hugging Face counts them: 0 is the embedding.

    `norm`: the final norm is applied before the head.
    """

    def __init__(self, model: LVLM, states: tuple[int, ...], norm: bool, combine: Combine) -> None:
        self.model, self.states, self.combine = model, states, combine
        self.head = model.hf.get_output_embeddings()
        self.norm = attrgetter(model.family.final_norm)(model.hf) if norm else torch.nn.Identity()
        self.hidden: dict[int, Tensor] = {}
        self.last = _Last()

    def _hook(self, state: int) -> Any:
        def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.model.now.name == "main":
                self.hidden[state] = layer_input(args, kwargs)[:, -1]

        return before

    def early(self, n_rows: int) -> Float[Tensor, "layer row vocabulary"]:
        """Early logits of as many rows; the first step of a beam search runs each prompt once."""
        found = torch.stack([self.head(self.norm(self.hidden[state])).float() for state in self.states])
        return found.repeat_interleave(n_rows // found.shape[1], 1)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The combined scores."""
        return self.combine(scores, self.last.log_p, self.early(len(scores)))

    @contextmanager
    def reading(self) -> Iterator[GenerateOptions]:
        """While open, hidden states are kept."""
        with ExitStack() as stack:
            for state in self.states:  # what goes into a layer is the hidden state of its number
                layer = self.model.layer(state)
                stack.callback(layer.register_forward_pre_hook(self._hook(state), with_kwargs=True).remove)
            yield GenerateOptions(observers=(self.last,), processors=(self,), in_step=True)


def middle_states(n_layers: int) -> tuple[int, ...]:
    """States 20 to 28 of 32, scaled to a model's depth."""
    return tuple(range(math.ceil(20 / 32 * n_layers), math.floor(28 / 32 * n_layers) + 1))
