"""Whose forward pass runs, which methods are open, and which thread has the model."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from threading import RLock
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from interp.models.generation import GenerateOptions, HeadSelection

PASSES = {
    "main": "gives the logits from which the text is written",
    "contrast": "reads the same text as a weaker reader, whose logits are subtracted",
    "choice": "looks at the prompts, from which heads are chosen",
    "source": "reads the same text elsewhere, for head outputs that are put in place of the model's",
}
"""The owners of forward passes."""


@dataclass(frozen=True)
class Pass:
    """A forward pass, and what a hook inside it may want to know.

    `prompts` names the prompt of the batch that each row continues; None: the rows are the batch's, in order, each
    followed by its copies (beams, image-free streams).  `seen` tells whether earlier tokens lie in its cache; None: a
    pass over one token goes on, a longer one begins.  `owner` is who made it.
    """

    name: str = "main"
    prompts: Int[Tensor, " row"] | None = None
    seen: bool | None = None
    owner: Any = None

    def prompt_of(self, n_rows: int, n_prompts: int) -> Int[Tensor, " row"]:
        """The prompt that each row continues; ValueError if the rows are no copies of the prompts."""
        if self.prompts is not None:
            return self.prompts
        copies, rest = divmod(n_rows, n_prompts)
        if rest:
            raise ValueError(f"expected {n_prompts} rows or copies of them, got a batch of {n_rows}")
        return torch.arange(n_prompts).repeat_interleave(copies)

    def goes_on(self, n_tokens: int) -> bool:
        """Whether the pass over `n_tokens` follows others over the same text."""
        return n_tokens == 1 if self.seen is None else self.seen


@runtime_checkable
class Steering(Protocol):
    """Something that changes what a model writes."""

    def steer(self, model: Any, inputs: Any) -> AbstractContextManager[GenerateOptions]:
        """While open, the model is changed for one batch; yields what `generate` is to be given."""
        ...


@dataclass(eq=False)
class Steered:
    """A method that is open on a model; `heads` fills with what it chooses, one `HeadSelection` a batch."""

    method: Steering
    heads: list[HeadSelection] = field(default_factory=list)


class Steerable:
    """A model that methods may change, one thread at a time; `now` is the pass that runs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.now = Pass()
        self._open: list[Steered] = []
        self._lock = RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}  # no lock can be copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_lock": RLock()}

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """While open, this thread has the model: methods, traces and generation of other threads are refused.

        Hooks and open methods change the model for whoever runs it, so one model serves one thread at a time.
        Raises ValueError where another thread has it; load the model once for each thread, or take turns.
        """
        if not self._lock.acquire(blocking=False):
            raise ValueError(
                f"{self.name} is in use by another thread, and what is open there would change what runs here; "
                "load the model once for each thread, or wait until the other one is done"
            )
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def passing(
        self, name: str, prompts: Tensor | None = None, seen: bool | None = None, owner: Any = None
    ) -> Iterator[None]:
        """While open, forward passes are of this name (a key of `PASSES`); see `Pass`."""
        before, self.now = self.now, Pass(name, prompts, seen, owner)
        try:
            yield
        finally:
            self.now = before

    @property
    def methods(self) -> tuple[Steering, ...]:
        """The methods that are open, in the order in which they were opened."""
        return tuple(steered.method for steered in self._open)

    @contextmanager
    def steered(self, method: Steering) -> Iterator[Steered]:
        """While open, `generate` is steered by a method; yields where the method leaves what it chooses."""
        with self.in_use():
            steered = Steered(method)
            self._open.append(steered)
            try:
                yield steered
            finally:
                self._open.remove(steered)
