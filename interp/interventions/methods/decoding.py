"""Hugging Face's own decoding: greedy, beams, sampling."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch

from interp.models import LVLM


@dataclass(frozen=True)
class Greedy:
    """Plain greedy generation, the baseline of every comparison."""

    citation: ClassVar[str] = "Hugging Face"
    cost: ClassVar[str] = "none"
    off: ClassVar[str] = ""

    def __call__(self, model: LVLM) -> AbstractContextManager[None]:
        """Change nothing."""
        return nullcontext()


@dataclass(frozen=True)
class Beams:
    """Beam search; one beam is greedy."""

    num_beams: int = 5
    citation: ClassVar[str] = "Hugging Face"
    cost: ClassVar[str] = "as many rows as beams"
    off: ClassVar[str] = "num_beams=1"

    def __post_init__(self) -> None:
        if self.num_beams < 1:
            raise ValueError(f"num_beams is a number of at least 1, got {self.num_beams}")

    @contextmanager
    def __call__(self, model: LVLM) -> Iterator[None]:
        """Steer `model.generate` while open."""
        with model.steered(lambda *_: nullcontext({"num_beams": self.num_beams})):
            yield


@dataclass(frozen=True)
class Sampling:
    """Sampling from the model's distribution; `temperature=0` is greedy.  Each batch starts from `seed`."""

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    citation: ClassVar[str] = "Hugging Face"
    cost: ClassVar[str] = "none"
    off: ClassVar[str] = "temperature=0"

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                "expected a temperature of at least 0 and a top_p above 0 and at most 1, "
                f"got {self.temperature} and {self.top_p}"
            )

    @contextmanager
    def _steer(self) -> Iterator[dict[str, object]]:
        if not self.temperature:
            yield {}
            return
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            yield {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}

    @contextmanager
    def __call__(self, model: LVLM) -> Iterator[None]:
        """Steer `model.generate` while open."""
        with model.steered(lambda *_: self._steer()):
            yield
