"""DoLa: the last layer contrasted with an earlier one.

Chuang et al., "DoLa: Decoding by Contrasting Layers Improves Factuality in Large Language Models", ICLR 2024,
arXiv 2309.03883.  Of the candidate layers the one whose next-token distribution is farthest from the last layer's is
contrasted, by log-probabilities, among plausible tokens.

Paper: farthest by Jensen-Shannon divergence.  Released code (voidism/DoLa @82dcec5, @18e99ca, which gave the paper's
numbers; the default): hidden states counted from the embedding, 0, and read by the head *without* the final norm
(`norm`); both terms of the divergence the other way round (`divergence=reversed`).  It chooses one layer for a whole
batch, here each row chooses, which is the same for one text.  Its generations had a repetition penalty of 1.2, after
the contrast: give `repetition_penalty` to `generate`, which applies it before. Layers: `bucket=low` and `high` as
transformers' `dola_layers`; where head and embedding are one matrix, low starts at 2. interp's reading before was
`layers=1+3+...:norm=true:divergence=jensen-shannon` (outputs of layers, with the norm).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor

from interp.interventions.base import Kept, Layers, Method, Preset
from interp.interventions.primitives.early_layers import EarlyLayers
from interp.metrics.contrast import Divergence, layer_contrast
from interp.models import LVLM, GenerateOptions, Inputs

DEEP = 40
"""Above so many layers a bucket holds `SPAN` of them."""
SPAN = 20
README = "voidism/DoLa README @07c8cd1"


def bucket_states(n_layers: int, bucket: str, tied: bool) -> tuple[int, ...]:
    """The hidden states of a bucket; `tied`: the head is the embedding, which reads itself in states 0 and 1."""
    middle = n_layers // 2
    if bucket == "high":
        return tuple(range(middle if n_layers <= DEEP else n_layers - SPAN, n_layers, 2))
    start = min(2, n_layers - 1) if tied else 0
    return (start,) if start == middle else tuple(range(start, middle if n_layers <= DEEP else SPAN, 2))


@dataclass(frozen=True)
class DoLa(Method):
    """The last layer contrasted with an earlier one.

    `layers` are the candidates, hidden states counted from the embedding; auto: those of the `bucket`.  None at all,
    `()`, changes nothing.
    """

    layers: Layers = None
    bucket: Literal["low", "high"] = "low"
    norm: bool = False
    divergence: Divergence = "reversed"
    plausibility: Kept = 0.1

    citation: ClassVar = "Chuang et al., ICLR 2024, arXiv 2309.03883"
    cost: ClassVar = "the language-model head for each candidate layer"
    off: ClassVar = "layers="
    passes: ClassVar = {"main": "the layers contrasted are those of the pass whose logits are changed"}
    presets: ClassVar = {
        "llama-7b-low": Preset({"layers": tuple(range(0, 16, 2))}, README),
        "llama-7b-high": Preset({"layers": tuple(range(16, 32, 2))}, f"{README}, for TruthfulQA"),
        "llama-13b-low": Preset({"layers": tuple(range(0, 20, 2))}, README),
        "llama-13b-high": Preset({"layers": tuple(range(20, 40, 2))}, f"{README}, for TruthfulQA"),
        "lvlm-even": Preset({"layers": tuple(range(0, 32, 2))}, "scripts of HALC and VASparse, 32 layers"),
        "lvlm-low": Preset({"layers": tuple(range(0, 16, 2))}, "OPERA and VHR, 32 layers [recalled]"),
    }

    def check(self, model: LVLM) -> None:
        """ValueError for a layer that is not there, or a bucket without one."""
        super().check(model)
        if self.layers is None and not self.states(model):
            raise ValueError(f"bucket {self.bucket} of DoLa holds none of {model.n_layers} layers; expected layers=")

    def states(self, model: LVLM) -> tuple[int, ...]:
        """The hidden states of this model that are candidates."""
        tied = model.hf.get_output_embeddings().weight is model.hf.get_input_embeddings().weight
        return bucket_states(model.n_layers, self.bucket, tied) if self.layers is None else self.layers

    @contextmanager
    def steer(self, model: LVLM, inputs: Inputs) -> Iterator[GenerateOptions]:
        """Contrast the logits of each step with a candidate layer's."""
        states = self.states(model)
        if not states:
            yield GenerateOptions()
            return
        combine = partial(_contrasted, plausibility=self.plausibility, divergence=self.divergence)
        with EarlyLayers(model, states, self.norm, combine).reading() as options:
            yield options


def _contrasted(scores: Tensor, last: Tensor, early: Tensor, plausibility: float, divergence: Divergence) -> Tensor:
    return layer_contrast(scores, last, early.log_softmax(-1), plausibility, divergence)
