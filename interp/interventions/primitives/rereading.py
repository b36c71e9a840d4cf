"""A prompt whose texts are searched: read anew from any tokens, with the last layer's attention among the tokens."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.interventions.primitives.continuation import Continuation
from interp.models import LVLM, AttentionCall
from interp.models.kernels import watched


@dataclass(frozen=True)
class Texts:
    """Texts of one prompt, as far as they are written.

    `omega` is the largest attention over the last layer's heads among their tokens, `looks` what the last token pays to
    the picture, `logits` the next token's; `text` holds the caches.
    """

    ids: Int[Tensor, "text token"]
    omega: Float[Tensor, "text token token"]
    looks: Float[Tensor, " text"]
    logits: Float[Tensor, "text vocabulary"]
    text: Continuation

    def select(self, rows: Int[Tensor, " row"]) -> "Texts":
        """Some of the texts, one as often as it is named; the others are left as they are."""
        text = copy.copy(self.text)
        text.cache = copy.copy(self.text.cache)  # reading on makes new tensors, so the old ones can be shared
        text.cache.layers = [copy.copy(layer) for layer in self.text.cache.layers]
        text.select(rows)
        return Texts(self.ids[rows], self.omega[rows], self.looks[rows], self.logits[rows], text)


class Reader:
    """Reads texts after one prompt.  `normalised`: rows of the largest attention are made to sum to one over all keys.

    `prompt` holds what was read of the prompt, with a single row; `logits` are those that follow it.
    """

    def __init__(
        self, model: LVLM, prompt: Continuation, logits: Tensor, image: Bool[Tensor, " prompt"], normalised: bool
    ) -> None:
        self.model, self.prompt, self.logits, self.image = model, prompt, logits, image
        self.normalised = normalised
        self.seen = torch.empty(0)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While open, what the tokens that are read attend to is noted."""
        watch: dict[Any, Any] = {self.model.part(self.model.n_layers - 1, self.model.family.attention): self._watch}
        with watched(self.model.decoder_configs, watch):
            yield

    def _watch(self, call: AttentionCall) -> None:
        self.seen = call.pattern().double().amax(1)

    def start(self, n: int) -> Texts:
        """As many empty texts."""
        return self.at(torch.empty(n, 0, dtype=torch.long, device=self.logits.device))

    def at(self, ids: Int[Tensor, "text token"]) -> Texts:
        """Texts read from their first token on."""
        rows = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
        omega = torch.empty(1, 0, 0, dtype=torch.double, device=ids.device)
        looks = torch.zeros(1, dtype=torch.double, device=ids.device)
        empty = Texts(ids[:1, :0], omega, looks, self.logits, self.prompt).select(rows)
        return self.read(empty, ids) if ids.shape[1] else empty

    def read(self, texts: Texts, ids: Int[Tensor, "text token"]) -> Texts:
        """Texts with further tokens; the caches of `texts` go on to them."""
        logits = texts.text.feed(ids)
        both = torch.cat([texts.ids, ids], 1)
        new, length, n_prompt = self.seen, both.shape[1], len(self.image)
        new = torch.nn.functional.pad(new, (n_prompt + length - new.shape[-1], 0))  # a sliding window holds fewer keys
        if self.normalised:
            new = new / new.sum(-1, keepdim=True)
        looks = new[:, -1, :n_prompt][:, self.image].sum(-1)
        omega = torch.cat([torch.nn.functional.pad(texts.omega, (0, ids.shape[1])), new[..., n_prompt:]], 1)
        return replace(texts, ids=both, omega=omega, looks=looks, logits=logits)
