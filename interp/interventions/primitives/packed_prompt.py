"""Two prompts in one row: the image-free prompt stands in front of the prompt, and neither sees the other.

Both are read in generate's own first pass, so that a method which compares them pays for the tokens of the image-free
prompt, and not for a pass of its own in which that one is padded to the length of the other.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.interventions.primitives.own_masks import as_taken, takes_masks
from interp.models import LVLM, Inputs
from interp.models.compat import cache_keyword


def apart(
    first: Int[Tensor, "batch before"], second: Int[Tensor, "batch token"]
) -> Bool[Tensor, "batch 1 position position"]:
    """Which positions see which, from the padding masks of two stretches: causal, each within its own stretch.

    Padding sees itself, as a row of nothing has no softmax.
    """
    n, length = first.shape[1], first.shape[1] + second.shape[1]
    place = torch.arange(length, device=first.device)
    seen = (place[:, None] >= place) & ((place[:, None] < n) == (place < n))
    real = torch.cat([first, second], 1).bool()
    return (seen & real[:, None] | torch.eye(length, dtype=torch.bool, device=first.device))[:, None]


class PackedPrompt:
    """Puts the prompts `before` in front of generate's; `reading` tells whether the pass that runs holds both.

    In that pass `before` has the first `n` positions, the prompt the others.
    """

    def __init__(self, model: LVLM, inputs: Inputs, before: Inputs) -> None:
        self.model, self.inputs, self.before = model, inputs, before
        self.n = before.input_ids.shape[1]
        self.begun = self.reading = False
        self.cache: Any = None

    @contextmanager
    def open(self, otherwise: Callable[[], None], after: Callable[[], None]) -> Iterator[None]:
        """While open, the first pass holds both, then `after` is called; where it cannot, `otherwise` is, before it."""

        def enter(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            if self.begun or self.model.now.name != "main":
                return None
            self.begun, self.reading = True, self._fits(kwargs)
            if not self.reading:
                otherwise()
                return None
            self.cache = kwargs[cache_keyword(self.model.hf)]
            return args, kwargs | self._both()

        def leave(_: Any, __: Any, ___: Any) -> None:
            if self.reading:
                for layer in self.cache.layers:
                    layer.keys, layer.values = layer.keys[:, :, self.n :], layer.values[:, :, self.n :]
                self.reading = False
                after()

        with ExitStack() as stack:
            stack.callback(self.model.hf.register_forward_pre_hook(enter, with_kwargs=True).remove)
            stack.callback(self.model.hf.register_forward_hook(leave).remove)
            yield

    def _both(self) -> dict[str, Tensor]:
        """What stands in place of the prompt's own arguments."""
        first, second = self.before, self.inputs
        return {
            "input_ids": torch.cat([first.input_ids, second.input_ids], 1),
            "attention_mask": as_taken(self.model, apart(first.attention_mask, second.attention_mask)),
            "position_ids": torch.cat([first.position_ids, second.position_ids], -1),
        }

    def _fits(self, kwargs: dict[str, Any]) -> bool:
        """Whether the pass reads the prompts as they are, into an empty cache, with ordinary causal attention."""
        cache: Any = kwargs.get(cache_keyword(self.model.hf))
        known = {*self.inputs.kwargs(), "cache_position"}
        return bool(
            takes_masks(self.model, self.inputs, cache)
            and not any(layer.get_seq_length() for layer in cache.layers)
            and torch.equal(kwargs["input_ids"], self.inputs.input_ids)  # no beams
            and not any(isinstance(value, Tensor) and name not in known for name, value in kwargs.items())
            and not (kwargs.get("output_hidden_states") or kwargs.get("output_attentions"))
        )
