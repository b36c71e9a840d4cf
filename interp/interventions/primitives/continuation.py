"""Texts that a model goes on reading beside generate's own, with a cache of their own."""

import copy
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from interp.models import LVLM, Inputs
from interp.models.compat import cache_keyword


class Continuation:
    """Texts that a model goes on reading, a few tokens at a time; its passes bear the name `purpose`."""

    def __init__(self, model: LVLM, inputs: Inputs, purpose: str, owner: Any = None) -> None:
        self.model, self.inputs, self.purpose, self.owner = model, inputs, purpose, owner
        self.cache: Any = DynamicCache(config=model.hf.config.get_text_config())
        self.prompt = torch.arange(len(inputs.input_ids))
        self.mask = inputs.attention_mask
        self.position = inputs.position_ids.amax(-1).reshape(-1, len(inputs.input_ids)).amax(0)

    def _read(self, seen: bool, **kwargs: Any) -> Float[Tensor, "row vocabulary"]:
        kwargs[cache_keyword(self.model.hf)] = self.cache
        with self.model.passing(self.purpose, self.prompt, seen, self.owner):
            return self.model.hf(**kwargs, use_cache=True, logits_to_keep=1).logits[:, -1]

    @torch.no_grad()
    def start(self) -> Float[Tensor, "row vocabulary"]:
        """Read the prompts; the logits of the next token."""
        return self._read(False, **self.inputs.kwargs())

    def select(self, rows: Int[Tensor, " row"]) -> None:
        """Go on with some of the rows, a row as often as it is named."""
        self.cache.batch_select_indices(rows)
        self.mask, self.position = self.mask[rows], self.position[rows]
        self.prompt = self.prompt[rows.to(self.prompt.device)]

    def chosen(self, rows: Int[Tensor, " row"]) -> "Continuation":
        """Some of the rows as a continuation of their own; this one is left as it is."""
        found = copy.copy(self)
        found.cache = copy.copy(self.cache)  # reading on makes new tensors, so the old ones can be shared
        found.cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        found.select(rows)
        return found

    def next(self, ids: Int[Tensor, "row token"]) -> dict[str, Tensor]:
        """What the model is to be given with further tokens, which count as read from then on."""
        steps = torch.arange(1, ids.shape[1] + 1, device=ids.device)
        positions = self.position[:, None] + steps
        self.position, self.mask = positions[:, -1], torch.cat([self.mask, torch.ones_like(ids)], 1)
        positions = positions.expand(*self.inputs.position_ids.shape[:-2], -1, -1)
        kwargs = {"input_ids": ids, "attention_mask": self.mask, "position_ids": positions}
        return kwargs | {name: torch.full_like(ids, self.inputs.suffix_type) for name in self.inputs.token_types}

    @torch.no_grad()
    def feed(self, ids: Int[Tensor, "row token"]) -> Float[Tensor, "row vocabulary"]:
        """Read further tokens; the logits of the next one."""
        kwargs: dict[str, Any] = self.next(ids)
        if self.model.family.needs_pixels:
            kwargs |= {name: value[self.prompt.to(value.device)] for name, value in self.inputs.pixels.items()}
        return self._read(True, **kwargs)
