"""Hugging Face's own decoding: greedy, beams, sampling; and greedy with a bias on stopping or on some tokens.

Nucleus sampling (Holtzman et al., ICLR 2020, arXiv 1904.09751) is `sampling:top_p=0.9`; a draw is one of many, so
compare several: `sampling:top_p=0.9:seed=1,sampling:top_p=0.9:seed=2`, and so on.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from torch import Tensor
from transformers import LogitsProcessor

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


class _Biased(LogitsProcessor):
    """Adds a bias to the scores of some tokens."""

    def __init__(self, ids: list[int], bias: float) -> None:
        self.ids, self.bias = ids, bias

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, self.ids] += self.bias
        return scores


@dataclass(frozen=True)
class StopBias(Method):
    """Greedy generation with `bias` (nats) on the log-odds of stopping: says more below 0, less above.

    Adding to the logits of the end-of-sequence tokens adds the same to their log-odds against all other tokens.  Swept,
    it draws the operating curve of the unchanged model (`interp study --operating-curve`).
    """

    bias: Annotated[float, Within(-1000, 1000)] = 1.0

    citation: ClassVar = "a control of length; no paper's method"
    cost: ClassVar = "none"
    off: ClassVar = "bias=0"
    passes: ClassVar = OF_THE_LOOP

    def check(self, model: LVLM) -> None:
        """ValueError if the model names no token that ends a text."""
        super().check(model)
        if self.bias and not self._ends(model):
            raise ValueError(f"StopBias moves the end-of-sequence token, and {model.name} names none")

    def steer(self, model: LVLM, inputs: Inputs) -> AbstractContextManager[GenerateOptions]:
        """Bias the end of sequence in each step."""
        return nullcontext(GenerateOptions(processors=(_Biased(self._ends(model), self.bias),) if self.bias else ()))

    def _ends(self, model: LVLM) -> list[int]:
        eos = model.generation_settings["eos_token_id"]
        return [eos] if isinstance(eos, int) else list(eos or ())


@dataclass(frozen=True)
class TokenBias(Method):
    """Greedy generation with `bias` (nats) on the logits of `tokens`, such as those that begin objects' names.

    A control that experiments build for a model, whose token ids it takes; it has no short notation.
    """

    tokens: tuple[int, ...] = ()
    bias: Annotated[float, Within(-1000, 1000)] = 1.0

    citation: ClassVar = "a control of how freely things are named; no paper's method"
    cost: ClassVar = "none"
    off: ClassVar = "bias=0"
    passes: ClassVar = OF_THE_LOOP

    def check(self, model: LVLM) -> None:
        """ValueError if a token is not the model's."""
        super().check(model)
        n = model.hf.get_output_embeddings().weight.shape[0]
        wrong = [i for i in self.tokens if not 0 <= i < n]
        if wrong:
            raise ValueError(f"tokens of TokenBias are between 0 and {n - 1} in this model, got {wrong[:5]}")

    def steer(self, model: LVLM, inputs: Inputs) -> AbstractContextManager[GenerateOptions]:
        """Bias the tokens in each step."""
        return nullcontext(GenerateOptions(processors=(_Biased(list(self.tokens), self.bias),) if self.bias else ()))
