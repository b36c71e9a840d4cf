"""Methods that push attention or logits with what the model itself holds.

- `PAI`: attention to the image amplified, and contrast with the text alone; Liu et al., ECCV 2024, arXiv 2407.21771.
  Scores of image keys become `s + alpha |s|` for text queries; logits `gamma theta - (gamma - 1) phi`.
- `DoLa`: the last layer against an earlier one; Chuang et al., ICLR 2024, arXiv 2309.03883.  Of the candidate layers
  the one whose next-token distribution is farthest from the last layer's (Jensen-Shannon) is contrasted, by
  log-probabilities, among plausible tokens.
- `SPIN`: heads that hardly look at the image are suppressed, for each query anew; Sarkar et al., 2025, arXiv
  2505.16411.  Scaling a head's probabilities scales its output.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import LogitsProcessor

from interp.interventions.methods.contrast import ImageFreeReader, contrasted
from interp.interventions.primitives.kv_cache import Marks, Memory, attending
from interp.models import LVLM, AttentionCall, Inputs, image_free


@dataclass(frozen=True)
class PAI:
    """Attention to the image amplified, and contrast with the text alone.

    `layers` are those whose attention is pushed; None: from a sixteenth of the depth on, as layer 2 of 32 in the paper.
    """

    alpha: float = 0.5
    gamma: float = 1.1
    plausibility: float = 0.1
    layers: tuple[int, ...] | None = None

    citation: ClassVar[str] = "Liu et al., ECCV 2024, arXiv 2407.21771"
    cost: ClassVar[str] = "attention scores of each step; a second forward pass, without the picture"
    off: ClassVar[str] = "alpha=0:gamma=1"

    def __post_init__(self) -> None:
        if self.alpha < 0 or self.gamma < 1 or not 0 <= self.plausibility <= 1:
            raise ValueError(
                "expected alpha of at least 0, gamma of at least 1 and plausibility between 0 and 1, "
                f"got {self.alpha}, {self.gamma} and {self.plausibility}"
            )

    def _chosen(self, model: LVLM) -> tuple[int, ...]:
        return self.layers if self.layers is not None else tuple(range(round(model.n_layers / 16), model.n_layers))

    @contextmanager
    def _steer(self, model: LVLM, inputs: Inputs) -> Iterator[dict[str, Any]]:
        layers = self._chosen(model)

        def choose(layer: int, call: AttentionCall, _: Memory, marks: Marks) -> tuple[AttentionCall, Tensor] | None:
            if layer not in layers:
                return None
            image, _generated = marks.rows(call, call.key.shape[2])
            scores = call.scores()
            asks = ~image[:, -scores.shape[2] :]
            pushed = asks[:, None, :, None] & image[:, None, None] & scores.isfinite()
            return call, call.pattern(torch.where(pushed, scores + self.alpha * scores.abs(), scores))

        with ExitStack() as stack:
            options: dict[str, Any] = {}
            if self.alpha:
                options |= stack.enter_context(attending(model, inputs, choose))
            if self.gamma > 1:
                reader = ImageFreeReader(model, image_free(model, inputs))
                options["logits_processor"] = [contrasted(reader, self.gamma - 1, self.plausibility)]
            yield options

    @contextmanager
    def __call__(self, model: LVLM) -> Iterator[None]:
        """Steer `model.generate` while open."""
        with model.steered(lambda steered, inputs: self._steer(steered, inputs)):
            yield


def farthest(
    last: Float[Tensor, "row vocabulary"], early: Float[Tensor, "layer row vocabulary"]
) -> Float[Tensor, "row vocabulary"]:
    """Of early log-probabilities those of the layer farthest from the last one's, by Jensen-Shannon divergence."""
    middle = torch.logaddexp(last, early) - math.log(2)

    def kl(p: Tensor, q: Tensor) -> Tensor:
        return (p.exp() * (p - q)).sum(-1)

    divergence = kl(last.expand_as(early), middle) + kl(early, middle)
    return early.gather(0, divergence.argmax(0)[None, :, None].expand(1, -1, early.shape[-1]))[0]


class _LayerContrast(LogitsProcessor):
    """Contrasts the logits with what earlier layers, read by hooks, would have said."""

    def __init__(self, model: LVLM, layers: tuple[int, ...], plausibility: float) -> None:
        self.layers, self.plausibility = layers, plausibility
        self.head = model.hf.get_output_embeddings()
        self.norm = attrgetter(model.family.final_norm)(model.hf)
        self.hidden: dict[int, Tensor] = {}

    def hook(self, layer: int) -> Any:
        def after(_: Any, __: Any, out: Any) -> None:
            self.hidden[layer] = (out[0] if isinstance(out, tuple) else out)[:, -1]

        return after

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        last = scores.float().log_softmax(-1)
        copies = len(scores) // len(self.hidden[self.layers[0]])
        early = torch.stack([self.head(self.norm(self.hidden[i])).float().log_softmax(-1) for i in self.layers])
        early = early.repeat_interleave(copies, 1)  # the first step of a beam search runs each prompt once
        floor = last.amax(-1, keepdim=True) + math.log(self.plausibility)
        return (last - farthest(last, early)).masked_fill(last < floor, -torch.inf).log_softmax(-1)


@dataclass(frozen=True)
class DoLa:
    """The last layer contrasted with an earlier one.

    `layers` are the candidates; None: every other one of the lower half.  None at all, `()`, changes nothing.
    """

    layers: tuple[int, ...] | None = None
    plausibility: float = 0.1

    citation: ClassVar[str] = "Chuang et al., ICLR 2024, arXiv 2309.03883"
    cost: ClassVar[str] = "the language-model head for each candidate layer"
    off: ClassVar[str] = "layers="

    def __post_init__(self) -> None:
        if not 0 < self.plausibility <= 1:
            raise ValueError(f"plausibility lies above 0 and is at most 1, got {self.plausibility}")

    @contextmanager
    def _steer(self, model: LVLM, _: Inputs) -> Iterator[dict[str, Any]]:
        layers = tuple(range(0, model.n_layers // 2, 2)) if self.layers is None else self.layers
        wrong = [layer for layer in layers if not 0 <= layer < model.n_layers]
        if wrong:
            raise ValueError(f"layers are between 0 and {model.n_layers - 1} in this model, got {wrong}")
        if not layers:
            yield {}
            return
        contrast = _LayerContrast(model, layers, self.plausibility)
        with ExitStack() as stack:
            for layer in layers:
                stack.callback(model.layer(layer).register_forward_hook(contrast.hook(layer)).remove)
            yield {"logits_processor": [contrast]}

    @contextmanager
    def __call__(self, model: LVLM) -> Iterator[None]:
        """Steer `model.generate` while open."""
        with model.steered(lambda steered, inputs: self._steer(steered, inputs)):
            yield


@dataclass(frozen=True)
class SPIN:
    """Heads that pay least attention to the image are scaled by `factor`, for each text query anew.

    `suppress` is the share of a layer's heads; `layers` None: the first half, as the paper finds best for LLaVA-1.5.
    """

    suppress: float = 0.1
    factor: float = 0.1
    layers: tuple[int, ...] | None = None

    citation: ClassVar[str] = "Sarkar et al., 2025, arXiv 2505.16411"
    cost: ClassVar[str] = "attention scores of each step"
    off: ClassVar[str] = "factor=1"

    def __post_init__(self) -> None:
        if not 0 <= self.suppress <= 1 or self.factor < 0:
            raise ValueError(
                "expected a share to suppress between 0 and 1 and a factor of at least 0, "
                f"got {self.suppress} and {self.factor}"
            )

    @contextmanager
    def _steer(self, model: LVLM, inputs: Inputs) -> Iterator[dict[str, Any]]:
        layers = range(model.n_layers // 2) if self.layers is None else self.layers
        number = round(self.suppress * model.n_heads)

        def choose(layer: int, call: AttentionCall, _: Memory, marks: Marks) -> tuple[AttentionCall, Tensor] | None:
            if layer not in layers:
                return None
            image, _generated = marks.rows(call, call.key.shape[2])
            pattern = call.pattern()
            looked = (pattern.float() * image[:, None, None]).sum(-1)  # [batch, head, query]
            least = looked.argsort(dim=1, stable=True).argsort(dim=1) < number
            asks = ~image[:, None, -pattern.shape[2] :]
            return call, pattern * torch.where(least & asks, self.factor, 1.0)[..., None].to(pattern)

        if self.factor == 1 or not number:
            yield {}
            return
        with attending(model, inputs, choose) as options:
            yield options

    @contextmanager
    def __call__(self, model: LVLM) -> Iterator[None]:
        """Steer `model.generate` while open."""
        with model.steered(lambda steered, inputs: self._steer(steered, inputs)):
            yield
