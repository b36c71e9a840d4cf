"""Hugging Face's own decoding: greedy, beams, sampling.

Nucleus sampling (Holtzman et al., ICLR 2020, arXiv 1904.09751) is `sampling:top_p=0.9`; a draw is one of many, so
compare several: `sampling:top_p=0.9:seed=1,sampling:top_p=0.9:seed=2`, and so on.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from interp.interventions.base import Kept, Method, Seed, Within
from interp.interventions.primitives.contrast import drawing
from interp.models import LVLM, GenerateOptions, Inputs

OF_THE_LOOP = {"main": "it says how tokens are taken from the logits, and changes no pass"}


@dataclass(frozen=True)
class Greedy(Method):
    """Plain greedy generation, the baseline of every comparison."""

    citation: ClassVar = "Hugging Face"
    cost: ClassVar = "none"
    off: ClassVar = ""
    passes: ClassVar = OF_THE_LOOP

    def steer(self, model: LVLM, inputs: Inputs) -> AbstractContextManager[GenerateOptions]:
        """Change nothing."""
        return nullcontext(GenerateOptions())


@dataclass(frozen=True)
class Beams(Method):
    """Beam search; one beam is greedy."""

    num_beams: Annotated[int, Within(1, 1000)] = 5

    citation: ClassVar = "Hugging Face"
    cost: ClassVar = "as many rows as beams"
    off: ClassVar = "num_beams=1"
    passes: ClassVar = OF_THE_LOOP

    def steer(self, model: LVLM, inputs: Inputs) -> AbstractContextManager[GenerateOptions]:
        """Search with beams."""
        return nullcontext(GenerateOptions(num_beams=self.num_beams if self.num_beams > 1 else None))


@dataclass(frozen=True)
class Sampling(Method):
    """Sampling from the model's distribution; `temperature=0` is greedy.  Each batch starts from `seed`."""

    temperature: Annotated[float, Within(0, 100)] = 1.0
    top_p: Kept = 1.0
    seed: Seed = 0

    citation: ClassVar = "Hugging Face"
    cost: ClassVar = "none"
    off: ClassVar = "temperature=0"
    passes: ClassVar = OF_THE_LOOP

    @contextmanager
    def steer(self, model: LVLM, inputs: Inputs) -> Iterator[GenerateOptions]:
        """Draw tokens, from the seed on."""
        with drawing(self.temperature, self.seed) as drawn:
            yield GenerateOptions(sampling=drawn and replace(drawn, top_p=self.top_p))
