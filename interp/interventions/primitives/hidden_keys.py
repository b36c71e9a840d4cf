"""Attending to fewer keys: what no later query sees leaves the cache, what one may see again is hidden.

Keys leave by key-value head: one that any of its query heads still sees stays, and is hidden from the others.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.interventions.base import Method
from interp.interventions.primitives.kv_cache import Marks, NotedLayer, Notes, attending, kept_first
from interp.models import LVLM, AttentionCall, GenerateOptions, Inputs

Seen = Bool[Tensor, "batch #head query key"]


@dataclass(frozen=True)
class HidesKeys(Method):
    """A method that hides some of the visible keys of each query."""

    cost: ClassVar = "attention scores of each step"
    passes: ClassVar = {"main": "keys are hidden in the cache of the text that is written"}
    notes: ClassVar[Callable[[], Any]] = Notes
    """What it keeps beside the keys of a layer."""

    @property
    @abstractmethod
    def is_off(self) -> bool:
        """Whether these settings change nothing."""

    def chosen_layers(self, model: LVLM) -> Sequence[int]:
        """The layers in which keys are hidden."""
        return range(model.n_layers)

    @abstractmethod
    def seen(self, call: AttentionCall, pattern: Float[Tensor, "batch head query key"], notes: Any) -> Seen:
        """Which keys each query attends to; `pattern` is what it would have attended to."""

    def attends(self, call: AttentionCall, cache: NotedLayer) -> tuple[AttentionCall, Tensor | None] | None:
        """What a layer attends to; as in `Choose`.  Keys are hidden, unless a method drops them."""
        scores = call.scores()
        seen = self.seen(call, call.pattern(scores), cache.notes)
        return call, call.pattern(scores.masked_fill(~seen, -torch.inf))

    def steer(self, model: LVLM, inputs: Inputs) -> AbstractContextManager[GenerateOptions]:
        """Hide keys in each step."""

        def choose(_: int, call: AttentionCall, cache: NotedLayer, __: Marks) -> Any:
            return self.attends(call, cache)

        if self.is_off:
            return nullcontext(GenerateOptions())
        return attending(model, inputs, choose, self.notes, self.chosen_layers(model))


@dataclass
class Left(Notes):
    """Which of the keys `[batch, head, key]` in the cache a query head still sees; None after the prompt: all."""

    alive: Tensor | None = None


def left(call: AttentionCall, notes: Left) -> Bool[Tensor, "batch head key"]:
    """Which keys are left for the query of a call that follows the prompt, itself among them."""
    batch, heads, _, _ = call.query.shape
    if notes.alive is None:
        return call.query.new_ones(batch, heads, call.key.shape[2], dtype=torch.bool)
    return torch.nn.functional.pad(notes.alive, (0, call.key.shape[2] - notes.alive.shape[2]), value=True)


def without(
    call: AttentionCall, cache: NotedLayer[Any], stays: Bool[Tensor, "batch head key"], *more: str
) -> AttentionCall:
    """Drop from the cache, for good, what no query head keeps; the call over what is left.

    `more` names further notes `[batch, head, key]`, which go with the keys.
    """
    groups = call.query.shape[1] // call.key.shape[1]
    together = stays.unflatten(1, (-1, groups)).any(2)
    notes, n = cache.notes, int(together.sum(-1).max())
    if n < together.shape[-1]:
        order, _ = kept_first(together)
        cache.evict(order)
        order = order.repeat_interleave(groups, 1)
        stays = stays.gather(-1, order)
        for name in more:
            setattr(notes, name, getattr(notes, name).gather(-1, order))
    notes.alive = None if stays.all() else stays
    return over(call, cache, notes)


def over(call: AttentionCall, cache: NotedLayer[Any], notes: Left) -> AttentionCall:
    """The call of one query over the cache as it is now, the keys that are not its own out of sight."""
    call = replace(call, key=cache.keys, value=cache.values, mask=None)
    return call if notes.alive is None else replace(call, mask=left(call, notes)[:, :, None])
