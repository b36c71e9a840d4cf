"""Contrastive decoding: the model's logits against those of a weaker reader of the same text."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import LogitsProcessor

from interp.interventions.primitives.continuation import Continuation
from interp.metrics.contrast import contrast_logits, plausible
from interp.models import LVLM, Inputs, Sampled
from interp.models.compat import offloaded

Phi = Callable[[Int[Tensor, "row token"], Bool[Tensor, "row vocabulary"] | None], Float[Tensor, "row vocabulary"]]
"""Logits of the weaker reader for the next token, from the token ids so far, and which are asked for (None: all)."""
EmbeddingContrast = Literal["pooled", "last"]


@contextmanager
def drawing(temperature: float, seed: int) -> Iterator[Sampled | None]:
    """While open, random numbers start from a seed; how tokens are drawn, None at temperature 0: they are not."""
    if not temperature:
        yield None
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield Sampled(temperature)


class Contrast(LogitsProcessor):
    """`(1 + alpha) theta - alpha phi` among tokens plausible to theta; `alpha` may depend on the step, from 1."""

    def __init__(self, phi: Phi, alpha: float | Callable[[int], float], plausibility: float) -> None:
        self.phi, self.alpha, self.plausibility = phi, alpha, plausibility
        self.steps = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The log-probabilities of the contrast."""
        self.steps += 1
        alpha = self.alpha(self.steps) if callable(self.alpha) else self.alpha
        phi = self.phi(input_ids, plausible(scores, self.plausibility))
        return contrast_logits(scores, phi, alpha, self.plausibility)


class Subtraction(LogitsProcessor):
    """`theta - alpha phi`, of any token, as VASparse's released code has it."""

    def __init__(self, phi: Phi, alpha: float) -> None:
        self.phi, self.alpha = phi, alpha

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The difference."""
        return scores.float() - self.alpha * self.phi(input_ids, None).to(scores.device)


class WeakerReader:
    """What the model says to other prompts with the same text, with a cache of its own that follows the beams."""

    def __init__(self, model: LVLM, inputs: Inputs, owner: Any = None) -> None:
        self.text, self.before, self.n_prompt = Continuation(model, inputs, "contrast", owner), torch.empty(0), 0

    def __call__(self, ids: Int[Tensor, "row token"], _: Tensor | None = None) -> Tensor:
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


class EmbeddingReader:
    """SVCD's `phi` (VASparse: Zhuang et al., CVPR 2025, arXiv 2501.06553, eq. 6): no decoder at all.

    `pooled`: the mean over the embeddings of the sequence, a random `mask_rate` of its image tokens left out, goes to
    the head; `last`: the last token's embedding alone (as the released code does; it does not depend on the picture).
    """

    def __init__(self, model: LVLM, inputs: Inputs, kind: EmbeddingContrast, mask_rate: float, seed: int) -> None:
        self.head, self.embed = model.hf.get_output_embeddings(), model.hf.get_input_embeddings()
        self.kind, self.n_prompt = kind, inputs.input_ids.shape[1]
        if kind == "last":
            return
        prompt = model.embeddings(inputs)
        random = torch.Generator().manual_seed(seed)
        masked = torch.rand(inputs.input_ids.shape, generator=random).to(prompt.device) < mask_rate
        used = inputs.attention_mask.bool() & ~(inputs.image_mask & masked)
        self.total, self.count = (prompt * used[..., None]).sum(1), used.sum(1, keepdim=True)

    def __call__(
        self, ids: Int[Tensor, "row token"], needed: Bool[Tensor, "row vocabulary"] | None = None
    ) -> Float[Tensor, "row vocabulary"]:
        """Logits of the next token; with `needed` those of other tokens may be 0."""
        hidden = self._hidden(ids)
        if needed is None or type(self.head) is not nn.Linear or offloaded(self.head):
            return self.head(hidden).float()
        tokens = needed.any(0).nonzero()[:, 0].to(hidden.device)
        if 4 * len(tokens) > needed.shape[1]:  # picking so many rows of the head costs more than it saves
            return self.head(hidden).float()
        bias = None if self.head.bias is None else self.head.bias[tokens]
        logits = hidden.new_zeros(needed.shape, dtype=torch.float32)
        logits[:, tokens] = nn.functional.linear(hidden, self.head.weight[tokens], bias).float()
        return logits

    def _hidden(self, ids: Tensor) -> Float[Tensor, "row d_model"]:
        """What goes to the head."""
        if self.kind == "last":
            return self.embed(ids[:, -1])
        copies = len(ids) // len(self.total)
        more = self.embed(ids[:, self.n_prompt :])
        total, count = (x.repeat_interleave(copies, 0) for x in (self.total, self.count))
        return ((total + more.sum(1)) / (count + more.shape[1])).to(self.head.weight.dtype)
