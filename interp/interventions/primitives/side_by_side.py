"""Two streams as one batch: from the second token on, each row is followed by its weaker reader's, in one cache.

The prompts are read apart, as they have different lengths and pictures.  After that both streams read the same tokens,
so one pass of twice the rows does what two passes did: the weights are fetched once, and each operation is started
once.  Where that cannot be (beams, several open methods, layers with windows, a cache of another kind), the weaker
reader goes on by passes of its own.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicLayer

from interp.interventions.primitives.contrast import WeakerReader
from interp.interventions.primitives.kv_cache import NotedLayer
from interp.models import LVLM, Inputs
from interp.models.compat import cache_keyword


def _turns(first: Tensor, second: Tensor) -> Tensor:
    """Rows of two batches in turn; rows are the last axis but one, or the first of four (keys and values)."""
    axis = 0 if first.ndim == 4 else first.ndim - 2
    return torch.stack([first, second], axis + 1).flatten(axis, axis + 1)


def _mask(kwargs: dict[str, Any], cache: Any) -> Tensor:
    """Which keys a row may see; generate leaves it out where that is all of them."""
    if kwargs.get("attention_mask") is not None:
        return kwargs["attention_mask"]
    ids = kwargs["input_ids"]
    return ids.new_ones(len(ids), cache.get_seq_length() + ids.shape[1])


class SideBySide(WeakerReader):
    """A weaker reader whose rows ride in generate's own passes while `riding` is open."""

    def __init__(self, model: LVLM, inputs: Inputs) -> None:
        super().__init__(model, inputs)
        self.model, self.read = model, torch.empty(0)
        self.cache: Any = None
        """Generate's own, since it holds both streams."""

    @property
    def rides(self) -> bool:
        """Whether rows of both streams are in one batch now."""
        return self.cache is not None

    @contextmanager
    def riding(self) -> Iterator[None]:
        """While open, the rows ride along where they can; the cache is left as generate alone would have filled it."""
        if len(self.model.methods) > 1 or self.model.family.needs_pixels:
            yield
            return
        with ExitStack() as stack:
            stack.callback(self.model.hf.register_forward_pre_hook(self._joined, with_kwargs=True).remove)
            stack.callback(self.model.hf.register_forward_hook(self._parted).remove)
            yield
        if self.rides:
            rows = torch.arange(0, 2 * len(self.text.mask), 2, device=self.text.mask.device)
            self.cache.batch_select_indices(rows)

    def __call__(self, ids: Int[Tensor, "row token"], _: Tensor | None = None) -> Tensor:
        """Logits `[row, vocabulary]` of the next token."""
        if not self.rides:
            return super().__call__(ids)
        return self.read.float()

    def _joined(self, _: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """Before a pass of generate over one token: the same for both streams."""
        if self.model.now.name != "main" or not len(self.before):
            return None
        if not self.rides and self._fits(kwargs):
            self._merge(kwargs[cache_keyword(self.model.hf)])
        if not self.rides:
            return None
        other, mask = self.text.next(kwargs["input_ids"]), _mask(kwargs, self.cache)
        mine = {**kwargs, "attention_mask": mask}
        other["attention_mask"] = pad(other["attention_mask"], (mask.shape[1] - other["attention_mask"].shape[1], 0))
        return args, kwargs | {name: _turns(mine[name], value) for name, value in other.items()}

    def _parted(self, _: Any, __: Any, output: Any) -> Any:
        """After it: generate gets the logits of its own rows."""
        if self.model.now.name != "main" or not self.rides:
            return None
        self.read = output.logits[1::2, -1]
        output.logits = output.logits[0::2]
        return output

    def _fits(self, kwargs: dict[str, Any]) -> bool:
        """Whether generate goes on token by token with the rows, the masks and the cache that are expected."""
        ids, cache = kwargs["input_ids"], kwargs.get(cache_keyword(self.model.hf))
        if cache is None or not cache.layers:
            return False
        plain = all(type(x) in (DynamicLayer, NotedLayer) for x in cache.layers)
        asked = kwargs.get("output_hidden_states") or kwargs.get("output_attentions")
        mine = self.text
        return bool(
            plain
            and not asked
            and all(type(layer) is DynamicLayer for layer in mine.cache.layers)
            and len(cache.layers) == len(mine.cache.layers)
            and (mask := _mask(kwargs, cache)).ndim == 2
            and ids.shape == (len(mine.inputs.input_ids), 1)  # no beams
            and mask.shape[1] == cache.layers[0].keys.shape[2] + 1 > mine.mask.shape[1]
            and kwargs["position_ids"].shape[:-2] == mine.inputs.position_ids.shape[:-2]
        )

    def _merge(self, cache: Any) -> None:
        """Put the weaker reader's keys and values beside generate's, in places that end alike."""
        for layer, other in zip(cache.layers, self.text.cache.layers, strict=True):
            more = (0, 0, layer.keys.shape[2] - other.keys.shape[2], 0)
            layer.keys = _turns(layer.keys, pad(other.keys, more))
            layer.values = _turns(layer.values, pad(other.values, more))
        self.cache = cache
        self.text.cache.reset()
