"""DoLa: the last layer contrasted with an earlier one.

Chuang et al., "DoLa: Decoding by Contrasting Layers Improves Factuality in Large Language Models", ICLR 2024,
arXiv 2309.03883.  Of the candidate layers the one whose next-token distribution is farthest from the last layer's
(Jensen-Shannon) is contrasted, by log-probabilities, among plausible tokens.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import LogitsProcessor

from interp.interventions.base import Kept, Layers, Method
from interp.metrics.contrast import layer_contrast
from interp.models import LVLM, GenerateOptions, Inputs


class _Last(LogitsProcessor):
    """Keeps the last layer's own log-probabilities, before any method changes them."""

    def __init__(self) -> None:
        self.log_p = torch.empty(0)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.log_p = scores.float().log_softmax(-1)
        return scores


class _LayerContrast(LogitsProcessor):
    """Contrasts the logits with what earlier layers, read by hooks, would have said."""

    def __init__(self, method: "DoLa", model: LVLM, layers: tuple[int, ...]) -> None:
        self.method, self.model, self.layers = method, model, layers
        self.head = model.hf.get_output_embeddings()
        self.norm = attrgetter(model.family.final_norm)(model.hf)
        self.hidden: dict[int, Tensor] = {}
        self.last = _Last()

    def hook(self, layer: int) -> Any:
        def after(_: Any, __: Any, out: Any) -> None:
            if self.model.now.name in self.method.passes:
                self.hidden[layer] = (out[0] if isinstance(out, tuple) else out)[:, -1]

        return after

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        copies = len(scores) // len(self.hidden[self.layers[0]])
        early = torch.stack([self.head(self.norm(self.hidden[i])).float().log_softmax(-1) for i in self.layers])
        early = early.repeat_interleave(copies, 1)  # the first step of a beam search runs each prompt once
        return layer_contrast(scores, self.last.log_p, early, self.method.plausibility)


@dataclass(frozen=True)
class DoLa(Method):
    """The last layer contrasted with an earlier one.

    `layers` are the candidates; None: every other one of the lower half.  None at all, `()`, changes nothing.
    """

    layers: Layers = None
    plausibility: Kept = 0.1

    citation: ClassVar = "Chuang et al., ICLR 2024, arXiv 2309.03883"
    cost: ClassVar = "the language-model head for each candidate layer"
    off: ClassVar = "layers="
    passes: ClassVar = {"main": "the layers contrasted are those of the pass whose logits are changed"}

    @contextmanager
    def steer(self, model: LVLM, inputs: Inputs) -> Iterator[GenerateOptions]:
        """Contrast the logits of each step with a candidate layer's."""
        layers = tuple(range(0, model.n_layers // 2, 2)) if self.layers is None else self.layers
        if not layers:
            yield GenerateOptions()
            return
        contrast = _LayerContrast(self, model, layers)
        with ExitStack() as stack:
            for layer in layers:
                stack.callback(model.layer(layer).register_forward_hook(contrast.hook(layer)).remove)
            yield GenerateOptions(observers=(contrast.last,), processors=(contrast,), in_step=True)
