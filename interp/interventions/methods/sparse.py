"""Baselines that attend to fewer keys without asking what they show.

- `TopK`: the keys of largest probability, for each query.
- `StreamingLLM`: the first tokens and a window; Xiao et al., ICLR 2024, arXiv 2309.17453.
- `H2O`: the keys that received most attention so far, and the latest; Zhang et al., NeurIPS 2023, arXiv 2306.14048.
- `FastV`: after layer `layer`, only the image tokens to which the last prompt token attends most there; Chen et al.,
  ECCV 2024, arXiv 2403.06764.  There the others leave the sequence; here no later query sees them, which is the same
  for every token that is left.
- `SnapKV`: of the prompt, the keys that its last queries attend to; Li et al., NeurIPS 2024, arXiv 2404.14469.  Votes
  are pooled over neighbouring keys, as there.

All leave keys in memory and hide them; `keep=1` (`window=0` for `StreamingLLM`) changes nothing.
"""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.interventions.methods.vasparse import top_mask
from interp.interventions.primitives.kv_cache import Marks, Memory, attending
from interp.models import LVLM, AttentionCall, Inputs

Seen = Bool[Tensor, "batch #head query key"]


@dataclass(frozen=True)
class Sparse:
    """What the methods of this file share: some of the visible keys are hidden."""

    cost: ClassVar[str] = "attention scores of each step"

    @property
    @abstractmethod
    def is_off(self) -> bool:
        """Whether these settings change nothing."""

    @abstractmethod
    def seen(self, layer: int, call: AttentionCall, pattern: Tensor, memory: Memory, marks: Marks) -> Seen:
        """Which keys each query attends to; `pattern` is what it would have attended to."""

    def _choose(self, layer: int, call: AttentionCall, memory: Memory, marks: Marks) -> tuple[AttentionCall, Tensor]:
        scores = call.scores()
        seen = self.seen(layer, call, call.pattern(scores), memory, marks)
        return call, call.pattern(scores.masked_fill(~seen, -torch.inf))

    def _steer(self, model: LVLM, inputs: Inputs) -> AbstractContextManager[dict[str, Any]]:
        return nullcontext({}) if self.is_off else attending(model, inputs, self._choose)

    @contextmanager
    def __call__(self, model: LVLM) -> Iterator[None]:
        """Steer `model.generate` while open."""
        with model.steered(lambda steered, inputs: self._steer(steered, inputs)):
            yield


def _share(keep: float) -> None:
    if not 0 < keep <= 1:
        raise ValueError(f"keep is a share above 0 and at most 1, got {keep}")


@dataclass(frozen=True)
class TopK(Sparse):
    """For each query and head, the `keep` share of the keys it attends to most."""

    keep: float = 0.5
    citation: ClassVar[str] = "plain top-k"
    off: ClassVar[str] = "keep=1"

    def __post_init__(self) -> None:
        _share(self.keep)

    @property
    def is_off(self) -> bool:
        """Whether these settings change nothing."""
        return self.keep == 1

    def seen(self, layer: int, call: AttentionCall, pattern: Tensor, memory: Memory, marks: Marks) -> Seen:
        """Which keys each query attends to."""
        return top_mask(pattern, call.visible.expand_as(pattern), self.keep)


@dataclass(frozen=True)
class StreamingLLM(Sparse):
    """The first `sinks` tokens and the latest `window` ones."""

    sinks: int = 4
    window: int = 32
    citation: ClassVar[str] = "Xiao et al., ICLR 2024, arXiv 2309.17453"
    off: ClassVar[str] = "window=0"

    def __post_init__(self) -> None:
        if self.sinks < 0 or self.window < 0:
            raise ValueError(f"sinks and window are numbers of at least 0, got {self.sinks} and {self.window}")

    @property
    def is_off(self) -> bool:
        """Whether these settings change nothing."""
        return self.window == 0

    def seen(self, layer: int, call: AttentionCall, pattern: Tensor, memory: Memory, marks: Marks) -> Seen:
        """Which keys each query attends to."""
        visible = call.visible
        place = visible.int().cumsum(-1)  # among the keys a query can see, from 1
        return visible & ((place <= self.sinks) | (place > place[..., -1:] - self.window))


@dataclass(frozen=True)
class H2O(Sparse):
    """Half of the kept share for heavy hitters, half for the latest keys; chosen before each query, head by head."""

    keep: float = 0.5
    citation: ClassVar[str] = "Zhang et al., NeurIPS 2023, arXiv 2306.14048"
    off: ClassVar[str] = "keep=1"

    def __post_init__(self) -> None:
        _share(self.keep)

    @property
    def is_off(self) -> bool:
        """Whether these settings change nothing."""
        return self.keep == 1

    def seen(self, layer: int, call: AttentionCall, pattern: Tensor, memory: Memory, marks: Marks) -> Seen:
        """Which keys each query attends to."""
        visible = call.visible.expand_as(pattern)
        before = memory.notes.get("received", pattern.new_zeros(*pattern.shape[:2], 0, dtype=torch.float32))
        before = torch.nn.functional.pad(before, (0, pattern.shape[-1] - before.shape[-1]))
        received = before[:, :, None] + pattern.float().cumsum(2)
        memory.notes["received"] = received[:, :, -1]
        place = visible.int().cumsum(-1)
        recent = visible & (place > (1 - self.keep / 2) * place[..., -1:])
        return recent | top_mask(received, visible & ~recent, min(1.0, self.keep / 2 / (1 - self.keep / 2)))


@dataclass(frozen=True)
class FastV(Sparse):
    """From layer `layer` on, the `keep` share of the image tokens that the last prompt token attends to most there."""

    keep: float = 0.5
    layer: int = 2
    citation: ClassVar[str] = "Chen et al., ECCV 2024, arXiv 2403.06764"
    off: ClassVar[str] = "keep=1"

    def __post_init__(self) -> None:
        _share(self.keep)
        if self.layer < 1:
            raise ValueError(f"layer is a number of at least 1, got {self.layer}")

    @property
    def is_off(self) -> bool:
        """Whether these settings change nothing."""
        return self.keep == 1

    def _steer(self, model: LVLM, inputs: Inputs) -> AbstractContextManager[dict[str, Any]]:
        if self.is_off:
            return nullcontext({})
        if self.layer >= model.n_layers:
            raise ValueError(f"this model has {model.n_layers} layers, got layer {self.layer}")
        kept: list[Tensor] = []

        def choose(layer: int, call: AttentionCall, _: Memory, marks: Marks) -> tuple[AttentionCall, Tensor] | None:
            image, _generated = marks.rows(call, call.key.shape[2])
            if layer == self.layer - 1:  # shows where the last prompt token looks; attends as ever
                if call.query.shape[2] > 1:
                    last = call.block(call.query.shape[2] - 1, call.query.shape[2]).pattern()[:, :, 0].float().mean(1)
                    kept[:] = [top_mask(last, image, self.keep)]
                return None
            # beams of one prompt keep the same tokens, so rows need not follow them
            stays = torch.nn.functional.pad(kept[0], (0, image.shape[1] - kept[0].shape[1])).to(image.device)
            scores = call.scores().masked_fill((image & ~stays)[:, None, None], -torch.inf)
            return call, call.pattern(scores)

        return attending(model, inputs, choose, range(self.layer - 1, model.n_layers))

    def seen(self, layer: int, call: AttentionCall, pattern: Tensor, memory: Memory, marks: Marks) -> Seen:
        """Not used: what is seen depends on an earlier layer."""
        raise NotImplementedError


@dataclass(frozen=True)
class SnapKV(Sparse):
    """Of the prompt, the `keep` share of keys that its last `window` queries attend to most, and these themselves."""

    keep: float = 0.5
    window: int = 8
    pool: int = 5
    citation: ClassVar[str] = "Li et al., NeurIPS 2024, arXiv 2404.14469"
    off: ClassVar[str] = "keep=1"

    def __post_init__(self) -> None:
        _share(self.keep)
        if self.window < 1 or self.pool < 1 or self.pool % 2 == 0:
            raise ValueError(f"expected a window of at least 1 and an odd pool, got {self.window} and {self.pool}")

    @property
    def is_off(self) -> bool:
        """Whether these settings change nothing."""
        return self.keep == 1

    def seen(self, layer: int, call: AttentionCall, pattern: Tensor, memory: Memory, marks: Marks) -> Seen:
        """Which keys each query attends to: the prefill to all, later queries to what is left."""
        visible = call.visible
        if pattern.shape[2] > 1:
            votes: Float[Tensor, "batch head key"] = pattern[:, :, -self.window :].float().sum(2)
            pooled = torch.nn.functional.max_pool1d(votes, self.pool, 1, self.pool // 2)
            prompt = visible[:, :, -1].expand_as(votes).clone()
            prompt[..., -self.window :] = False
            kept = top_mask(pooled, prompt, self.keep)
            kept[..., -self.window :] = True
            memory.notes["kept"] = kept
            return visible
        kept = memory.notes["kept"]
        return visible & torch.nn.functional.pad(kept, (0, pattern.shape[-1] - kept.shape[-1]), value=True)[:, :, None]
