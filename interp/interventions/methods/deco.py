"""DeCo: the last layer's logits corrected by those of an earlier layer that is surest of a candidate.

Wang et al., "MLLM Can See? Dynamic Correction Decoding for Hallucination Mitigation", ICLR 2025, arXiv 2410.11779;
zjunlp/Deco `deco_greedy_search` @a3ccc15.  Early logits are read with the final norm; candidates are the likeliest
`top_k` tokens, as few as hold `top_p`; `theta + alpha m e` with the early logits `e` of the layer that gives a
candidate the largest probability, `m`.  Layers there: hidden states 20 to 28 of 32; here scaled to the depth.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from interp.interventions.base import Count, Kept, Layers, Method, Preset, Weight
from interp.interventions.primitives.early_layers import EarlyLayers, middle_states
from interp.metrics.contrast import layer_correction
from interp.models import LVLM, GenerateOptions, Inputs


@dataclass(frozen=True)
class DeCo(Method):
    """The last layer's logits corrected by those of an earlier layer that is surest of a candidate.

    `layers`: hidden states counted from the embedding; auto: 20 to 28 of 32.
    """

    alpha: Weight = 0.6
    top_p: Kept = 0.9
    top_k: Count = 20
    layers: Layers = None

    citation: ClassVar = "Wang et al., ICLR 2025, arXiv 2410.11779"
    cost: ClassVar = "the language-model head for each candidate layer"
    off: ClassVar = "alpha=0"
    passes: ClassVar = {"main": "the layers that correct are those of the pass whose logits are changed"}
    presets: ClassVar = {
        "llava-1.5": Preset({"layers": tuple(range(20, 29))}, "zjunlp/Deco chair_llava.py, pope_llava.py @cdc5c74")
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers == ():
            raise ValueError("layers of DeCo names none: nothing would be corrected; alpha=0 switches it off")

    @contextmanager
    def steer(self, model: LVLM, inputs: Inputs) -> Iterator[GenerateOptions]:
        """Correct the logits of each step."""
        if not self.alpha:
            yield GenerateOptions()
            return
        states = middle_states(model.n_layers) if self.layers is None else self.layers
        combine = partial(layer_correction, alpha=self.alpha, top_p=self.top_p, top_k=self.top_k)
        with EarlyLayers(model, states, True, combine).reading() as options:
            yield options
