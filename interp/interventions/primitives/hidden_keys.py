"""Attending to fewer keys: what is not seen stays in the cache and is hidden."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.interventions.base import Method
from interp.interventions.primitives.kv_cache import Marks, NotedLayer, Notes, attending
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

    def steer(self, model: LVLM, inputs: Inputs) -> AbstractContextManager[GenerateOptions]:
        """Hide keys in each step."""

        def choose(_: int, call: AttentionCall, cache: NotedLayer, __: Marks) -> tuple[AttentionCall, Tensor]:
            scores = call.scores()
            seen = self.seen(call, call.pattern(scores), cache.notes)
            return call, call.pattern(scores.masked_fill(~seen, -torch.inf))

        if self.is_off:
            return nullcontext(GenerateOptions())
        return attending(model, inputs, choose, self.notes, self.chosen_layers(model))
