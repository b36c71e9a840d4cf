"""Prompts whose texts are searched: read anew from any tokens, with the last layer's attention among the tokens.

A search is a generator: it asks for candidates after its texts (`Wanted`) and is given them read (`Texts`), so that
searches over several prompts go on together (`searched`).  The candidates after one text stand side by side in its row,
blind to each other: nothing is copied for them, and the cache of those that go on is picked out afterwards.
"""

import copy
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.interventions.primitives.continuation import Continuation
from interp.interventions.primitives.own_masks import as_taken, takes_masks
from interp.models import LVLM, AttentionCall
from interp.models.compat import cache_keyword
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
        return Texts(self.ids[rows], self.omega[rows], self.looks[rows], self.logits[rows], self.text.chosen(rows))


class LastLayer:
    """What the tokens that are read attend to in the last layer, the largest over its heads, in `seen`."""

    def __init__(self, model: LVLM) -> None:
        self.model, self.seen = model, torch.empty(0)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While open, it is noted."""
        watch: dict[Any, Any] = {self.model.part(self.model.n_layers - 1, self.model.family.attention): self._watch}
        with watched(self.model.decoder_configs, watch):
            yield

    def _watch(self, call: AttentionCall) -> None:
        self.seen = call.pattern().double().amax(1)


class Reader:
    """Reads texts after one prompt.  `normalised`: rows of the largest attention are made to sum to one over all keys.

    `prompt` holds what was read of the prompt, with a single row; `logits` are those that follow it.
    """

    def __init__(
        self, last: LastLayer, prompt: Continuation, logits: Tensor, image: Bool[Tensor, " prompt"], normalised: bool
    ) -> None:
        self.last, self.prompt, self.logits, self.image, self.normalised = last, prompt, logits, image, normalised

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
        return self.grown(texts, ids, self.last.seen, logits, texts.text)

    def grown(self, texts: Texts, ids: Tensor, seen: Tensor, logits: Tensor, text: Continuation) -> Texts:
        """Texts with further tokens that have been read, which pay `seen` to all keys, themselves the last."""
        both = torch.cat([texts.ids, ids], 1)
        length, n_prompt = both.shape[1], len(self.image)
        new = torch.nn.functional.pad(seen, (n_prompt + length - seen.shape[-1], 0))  # a window holds fewer keys
        if self.normalised:
            new = new / new.sum(-1, keepdim=True)
        looks = new[:, -1, :n_prompt][:, self.image].sum(-1)
        omega = torch.cat([torch.nn.functional.pad(texts.omega, (0, ids.shape[1])), new[..., n_prompt:]], 1)
        return Texts(both, omega, looks, logits, text)

    def read_all(self, wanted: "Sequence[Wanted]") -> list[Texts]:
        """What searches want, their texts equally long, in one pass where the model takes masks."""
        first = wanted[0].texts.text
        if takes_masks(first.model, first.inputs, first.cache):
            return _side_by_side(wanted)
        found = []
        for w in wanted:
            rows = torch.arange(len(w.tokens), device=w.tokens.device).repeat_interleave(w.tokens.shape[1])
            found.append(w.reader.read(w.texts.select(rows), w.tokens.flatten()[:, None]))
        return found


@dataclass(frozen=True)
class Wanted:
    """Candidates for the next token of texts; they are read as texts in the order of `tokens`, row by row."""

    reader: Reader
    texts: Texts
    tokens: Int[Tensor, "text candidate"]


Search = Generator[Wanted, Texts, Tensor]
"""Asks for candidates, is given them read, and ends with the best text's tokens."""


def searched(searches: Sequence[Search]) -> list[Tensor]:
    """Run searches to their ends, those together whose texts are equally long."""
    found: dict[int, Tensor] = {}
    waiting = {i: next(search) for i, search in enumerate(searches)}
    while waiting:
        length = min(w.texts.ids.shape[1] for w in waiting.values())  # one that went back catches up
        now = [i for i, w in waiting.items() if w.texts.ids.shape[1] == length]
        read = waiting[now[0]].reader.read_all([waiting[i] for i in now])
        for i, texts in zip(now, read, strict=True):
            try:
                waiting[i] = searches[i].send(texts)
            except StopIteration as end:
                found[i] = end.value
                del waiting[i]
    return [found[i] for i in range(len(searches))]


class _Branches(Continuation):
    """A continuation whose rows end in `n` candidates for one place; as rows count the candidates."""

    def __init__(self, before: Continuation, keys_and_values: Sequence[tuple[Tensor, Tensor]], n: int) -> None:
        self.__dict__ |= before.__dict__
        self.before, self.n, self.cache = before, n, copy.copy(before.cache)
        self.cache.layers = [copy.copy(layer) for layer in before.cache.layers]
        for layer, (keys, values) in zip(self.cache.layers, keys_and_values, strict=True):
            layer.keys, layer.values = keys, values

    def chosen(self, rows: Int[Tensor, " row"]) -> Continuation:
        """Some of the candidates, each with the text before it."""
        of, which = rows // self.n, rows % self.n
        found = copy.copy(self.before)
        found.prompt = self.prompt[of.to(self.prompt.device)]
        found.mask = torch.cat([self.mask[of], torch.ones_like(self.mask[of, :1])], 1)
        found.position = self.position[of] + 1
        found.cache = copy.copy(self.cache)
        found.cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        _, heads, length, _ = found.cache.layers[0].keys.shape
        index = self._places(of, which, heads, length)  # the same in each layer
        for layer in found.cache.layers:
            layer.keys, layer.values = (
                x.flatten(0, 2).index_select(0, index.to(x.device)).view(len(of), heads, -1, x.shape[-1])
                for x in (layer.keys, layer.values)
            )
        return found

    def _places(self, of: Tensor, which: Tensor, heads: int, length: int) -> Int[Tensor, " row"]:
        """Which rows of `[text * head * key]` are the keys of texts `of`, of the last `n` only number `which`."""
        places = torch.arange(length - self.n + 1, device=of.device).repeat(len(of), 1)
        places[:, -1] += which
        starts = (of[:, None] * heads + torch.arange(heads, device=of.device)) * length
        return (starts[..., None] + places[:, None]).flatten()


@torch.no_grad()
def _side_by_side(wanted: Sequence[Wanted]) -> list[Texts]:
    """Candidates of equally long texts in one pass: each sees its text and itself."""
    texts, n = [w.texts.text for w in wanted], wanted[0].tokens.shape[1]
    first, ids = texts[0], torch.cat([w.tokens for w in wanted])
    cache = copy.copy(first.cache)
    cache.layers = [copy.copy(layer) for layer in first.cache.layers]
    if len(texts) > 1:
        for i, layer in enumerate(cache.layers):
            layer.keys = torch.cat([t.cache.layers[i].keys for t in texts])
            layer.values = torch.cat([t.cache.layers[i].values for t in texts])
    before = torch.cat([t.mask for t in texts]).bool()[:, None].expand(-1, n, -1)
    itself = torch.eye(n, dtype=torch.bool, device=ids.device).expand(len(ids), -1, -1)
    places = torch.cat([t.position for t in texts])[:, None].expand(-1, n) + 1
    kwargs = {
        "input_ids": ids,
        "attention_mask": as_taken(first.model, torch.cat([before, itself], -1)[:, None]),
        "position_ids": places.expand(*first.inputs.position_ids.shape[:-2], -1, -1),
        cache_keyword(first.model.hf): cache,
    }
    with first.model.passing(first.purpose, torch.cat([t.prompt for t in texts]), True, first.owner):
        logits = first.model.hf(**kwargs, use_cache=True, logits_to_keep=n).logits
    seen = wanted[0].reader.last.seen
    itself = seen[..., -n:].diagonal(dim1=-2, dim2=-1)[..., None]
    seen = torch.cat([seen[..., :-n], itself], -1)
    found, end = list[Texts](), 0
    for w in wanted:
        start, end = end, end + len(w.tokens)
        mine = [(layer.keys[start:end], layer.values[start:end]) for layer in cache.layers]
        rows = torch.arange(len(w.tokens), device=ids.device).repeat_interleave(n)
        t = Texts(w.texts.ids[rows], w.texts.omega[rows], w.texts.looks[rows], w.texts.logits[rows], w.texts.text)
        each = w.tokens.flatten()[:, None], seen[start:end].flatten(0, 1)[:, None], logits[start:end].flatten(0, 1)
        found.append(w.reader.grown(t, *each, _Branches(w.texts.text, mine, n)))
    return found
