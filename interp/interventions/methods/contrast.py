"""Contrastive decoding: the model's logits against those of a weaker reader of the same text.

- `embedding_contrast`: input embeddings fed straight to the language-model head; VASparse's SVCD, Zhuang et al., CVPR
  2025, arXiv 2501.06553, eq. 6.
- `VCD`: the picture drowned in noise; Leng et al., CVPR 2024, arXiv 2311.16922, eqs. 3 and 4.  There noise is added by
  a diffusion schedule; here `image_free` says how the picture is changed, `noise` (default) replaces it.
- `M3ID`: the picture taken away, with a weight that grows along the text; Favero et al., CVPR 2024, arXiv 2403.14003.

`theta` is the model, `phi` the weaker reader: `(1 + alpha) theta - alpha phi` among the tokens that theta finds
plausible, `p_theta >= plausibility x max p_theta`.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor

from interp.models import LVLM, Inputs, image_free

Phi = Callable[[Int[Tensor, "row token"]], Float[Tensor, "row vocabulary"]]
"""Logits of the weaker reader for the next token, from the token ids so far."""


def contrast_logits(
    theta: Float[Tensor, "row vocabulary"], phi: Float[Tensor, "row vocabulary"], alpha: float, plausibility: float
) -> Float[Tensor, "row vocabulary"]:
    """Log-probabilities of the contrast, minus infinity where theta finds a token implausible."""
    log_theta = theta.float().log_softmax(-1)
    mixed = (1 + alpha) * log_theta - alpha * phi.float().to(theta.device)
    floor = log_theta.amax(-1, keepdim=True) + (math.log(plausibility) if plausibility else -torch.inf)
    return mixed.masked_fill(log_theta < floor, -torch.inf).log_softmax(-1)


class _Contrast(LogitsProcessor):
    def __init__(self, phi: Phi, alpha: Callable[[int], float], plausibility: float) -> None:
        self.phi, self.alpha, self.plausibility = phi, alpha, plausibility
        self.steps = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.steps += 1
        return contrast_logits(scores, self.phi(input_ids), self.alpha(self.steps), self.plausibility)


def contrasted(phi: Phi, alpha: float | Callable[[int], float], plausibility: float) -> LogitsProcessor:
    """A logits processor for `generate`; `alpha` may depend on the step, counted from 1."""
    return _Contrast(phi, alpha if callable(alpha) else lambda _: alpha, plausibility)


def embedding_contrast(model: LVLM, inputs: Inputs, kind: str, mask_rate: float, seed: int) -> Phi:
    """SVCD's `phi`: no decoder at all.

    `pooled`: the mean over the embeddings of the sequence, a random `mask_rate` of its image tokens left out, goes to
    the head; `last`: the last token's embedding alone (as the released code does; it does not depend on the picture).
    """
    head, embed = model.hf.get_output_embeddings(), model.hf.get_input_embeddings()
    n_prompt = inputs.input_ids.shape[1]
    if kind == "last":
        return lambda ids: head(embed(ids[:, -1])).float()
    prompt = model.embeddings(inputs)
    random = torch.Generator().manual_seed(seed)
    masked = torch.rand(inputs.input_ids.shape, generator=random).to(prompt.device) < mask_rate
    used = inputs.attention_mask.bool() & ~(inputs.image_mask & masked)
    total, count = (prompt * used[..., None]).sum(1), used.sum(1, keepdim=True)

    def phi(ids: Tensor) -> Tensor:
        copies = len(ids) // len(total)
        more = embed(ids[:, n_prompt:])
        mean = (total.repeat_interleave(copies, 0) + more.sum(1)) / (count.repeat_interleave(copies, 0) + more.shape[1])
        return head(mean.to(head.weight.dtype)).float()

    return phi


class Continuation:
    """Texts that a model goes on reading, a few tokens at a time, with a cache of its own."""

    def __init__(self, model: LVLM, inputs: Inputs) -> None:
        self.model, self.inputs = model, inputs
        self.cache = DynamicCache(config=model.hf.config.get_text_config())
        self.prompt = torch.arange(len(inputs.input_ids))
        self.mask = inputs.attention_mask
        self.position = inputs.position_ids.amax(-1).reshape(-1, len(inputs.input_ids)).amax(0)

    @torch.no_grad()
    def start(self) -> Float[Tensor, "row vocabulary"]:
        """Read the prompts; the logits of the next token."""
        kwargs = self.inputs.kwargs()
        return self.model.hf(**kwargs, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits[:, -1]

    def select(self, rows: Int[Tensor, " row"]) -> None:
        """Go on with some of the rows, a row as often as it is named."""
        self.cache.batch_select_indices(rows)
        self.mask, self.position = self.mask[rows], self.position[rows]
        self.prompt = self.prompt[rows.to(self.prompt.device)]

    @torch.no_grad()
    def feed(self, ids: Int[Tensor, "row token"]) -> Float[Tensor, "row vocabulary"]:
        """Read further tokens; the logits of the next one."""
        steps = torch.arange(1, ids.shape[1] + 1, device=ids.device)
        positions = self.position[:, None] + steps
        self.position, self.mask = positions[:, -1], torch.cat([self.mask, torch.ones_like(ids)], 1)
        positions = positions.expand(*self.inputs.position_ids.shape[:-2], -1, -1)
        kwargs: dict[str, Any] = {"input_ids": ids, "attention_mask": self.mask, "position_ids": positions}
        kwargs |= {name: torch.full_like(ids, self.inputs.suffix_type) for name in self.inputs.token_types}
        if self.model.family.needs_pixels:
            kwargs |= {name: value[self.prompt.to(value.device)] for name, value in self.inputs.pixels.items()}
        return self.model.hf(**kwargs, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits[:, -1]


class ImageFreeReader:
    """What the model says to an image-free prompt, with a cache of its own that follows the beams."""

    def __init__(self, model: LVLM, inputs: Inputs) -> None:
        self.text, self.before, self.n_prompt = Continuation(model, inputs), torch.empty(0), 0

    def __call__(self, ids: Int[Tensor, "row token"]) -> Tensor:
        """Logits `[row, vocabulary]` of the next token."""
        if not len(self.before):
            self.n_prompt = ids.shape[1]
            logits = self.text.start()
            rows = torch.arange(len(logits), device=ids.device).repeat_interleave(len(ids) // len(logits))
            self.text.select(rows)
            logits = logits[rows]
        else:
            parent = (ids[:, None, self.n_prompt : -1] == self.before[None, :, self.n_prompt :]).all(-1)
            prompt = self.text.prompt.to(ids.device)
            parent = parent & (prompt[:, None] == prompt)  # beams stay with their prompt
            self.text.select(parent.int().argmax(-1))
            logits = self.text.feed(ids[:, -1:])
        self.before = ids
        return logits.float()


@dataclass(frozen=True)
class VCD:
    """Contrast with the same prompt and a picture drowned in noise."""

    alpha: float = 1.0
    plausibility: float = 0.1
    image_free: str = "noise"
    seed: int = 0

    citation: ClassVar[str] = "Leng et al., CVPR 2024, arXiv 2311.16922"
    cost: ClassVar[str] = "a second forward pass for each step"
    off: ClassVar[str] = "alpha=0"

    def __post_init__(self) -> None:
        _check(self.alpha, self.plausibility)

    @contextmanager
    def _steer(self, model: LVLM, inputs: Inputs) -> Iterator[dict[str, Any]]:
        if not self.alpha:
            yield {}
            return
        reader = ImageFreeReader(model, image_free(model, inputs, self.image_free, self.seed))
        yield {"logits_processor": [contrasted(reader, self.alpha, self.plausibility)]}

    @contextmanager
    def __call__(self, model: LVLM) -> Iterator[None]:
        """Steer `model.generate` while open."""
        with model.steered(lambda steered, inputs: self._steer(steered, inputs)):
            yield


@dataclass(frozen=True)
class M3ID:
    """Contrast with the text alone, the more the longer the text.

    The weight at step t is `(1 - exp(-gamma t)) / exp(-gamma t)`; `gamma=0` changes nothing.  The paper contrasts only
    while the model is unsure (its most probable token below `confidence`).
    """

    gamma: float = 0.02
    confidence: float = 0.9
    plausibility: float = 0.0

    citation: ClassVar[str] = "Favero et al., CVPR 2024, arXiv 2403.14003"
    cost: ClassVar[str] = "a second forward pass for each step, without the picture"
    off: ClassVar[str] = "gamma=0"

    def __post_init__(self) -> None:
        _check(self.gamma, self.plausibility)

    @contextmanager
    def _steer(self, model: LVLM, inputs: Inputs) -> Iterator[dict[str, Any]]:
        if not self.gamma:
            yield {}
            return
        reader = ImageFreeReader(model, image_free(model, inputs))
        contrast = _Contrast(reader, lambda step: math.expm1(self.gamma * step), self.plausibility)
        yield {"logits_processor": [_WhereUnsure(contrast, self.confidence)]}

    @contextmanager
    def __call__(self, model: LVLM) -> Iterator[None]:
        """Steer `model.generate` while open."""
        with model.steered(lambda steered, inputs: self._steer(steered, inputs)):
            yield


class _WhereUnsure(LogitsProcessor):
    def __init__(self, inner: _Contrast, confidence: float) -> None:
        self.inner, self.confidence = inner, confidence

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        log_p = scores.float().log_softmax(-1)
        sure = log_p.amax(-1, keepdim=True) >= math.log(self.confidence)
        return torch.where(sure, log_p, self.inner(input_ids, scores))


def _check(alpha: float, plausibility: float) -> None:
    if alpha < 0 or not 0 <= plausibility <= 1:
        raise ValueError(
            f"expected a weight of at least 0 and a plausibility between 0 and 1, got {alpha} and {plausibility}"
        )
