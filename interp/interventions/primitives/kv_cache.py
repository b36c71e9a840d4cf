"""Changing attention while a model generates, natively: watched kernels, and a KV cache with notes on its keys."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import Cache, DynamicLayer

from interp.models import LVLM, AttentionCall, GenerateOptions, Inputs
from interp.models.kernels import PREFIX, watched


@dataclass
class Notes:
    """What a method keeps beside the keys of a layer: tensors whose first axis is the batch, or None so far."""

    def each(self, change: Callable[[Tensor], Tensor]) -> None:
        """Change every tensor alike, as when beams are reordered."""
        for note in fields(self):
            value = getattr(self, note.name)
            if value is not None:
                setattr(self, note.name, change(value))


N = TypeVar("N", bound=Notes)
V = TypeVar("V")


class NotedLayer(DynamicLayer, Generic[N]):
    """A layer of the KV cache from which keys can be evicted, with notes that move with beams.

    The layer's length is the number of tokens it has seen, so that positions go on rightly after an eviction.
    """

    def __init__(self, notes: N) -> None:
        super().__init__()
        self.notes, self.seen = notes, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values."""
        self.seen += key_states.shape[-2]
        return super().update(key_states, value_states, *args, **kwargs)

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys there will be, and how many tokens are gone."""
        kept = self.keys.shape[-2] if self.is_initialized and self.keys is not None else 0
        return kept + query_length, self.seen - kept

    def reorder_cache(self, beam_idx: Any) -> None:
        """Follow the beams."""
        super().reorder_cache(beam_idx)
        self.notes.each(lambda note: note.index_select(0, beam_idx.to(note.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        super().batch_select_indices(indices)
        self.notes.each(lambda note: note[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        super().batch_repeat_interleave(repeats)
        self.notes.each(lambda note: note.repeat_interleave(repeats, 0))

    def evict(self, order: Tensor) -> None:
        """Keep the keys at these places `[batch, kv_head, kept]`, in this order, and drop the others for good."""
        assert self.keys is not None
        assert self.values is not None
        batch, heads, n_keys, _ = self.keys.shape
        starts = torch.arange(0, batch * heads * n_keys, n_keys, device=order.device).view(batch, heads, 1)
        places = (starts + order).flatten()  # whole rows are copied, which is quicker than gathering their numbers
        self.keys, self.values = (
            x.flatten(0, 2).index_select(0, places).view(batch, heads, -1, x.shape[-1])
            for x in (self.keys, self.values)
        )

    @property
    def n_bytes(self) -> int:
        """What keys and values take."""
        if not self.is_initialized or self.keys is None or self.values is None:
            return 0
        return self.keys.nbytes + self.values.nbytes


def kept_first(keep: Bool[Tensor, "batch kv_head key"]) -> tuple[Tensor, Tensor]:
    """The places of the kept keys, for all heads as many as the one that keeps most, and which of them are alive.

    Rows that keep fewer keys than others carry dead ones along.
    """
    n = int(keep.sum(-1).max())
    order = (~keep).int().argsort(dim=-1, stable=True)[..., :n]
    return order, keep.gather(-1, order)


def received_so_far(
    before: Float[Tensor, "batch head earlier"] | None, pattern: Float[Tensor, "batch head query key"]
) -> Float[Tensor, "batch head query key"]:
    """The attention each key had received after each query, given what it had received before these."""
    total = pattern.float() if pattern.shape[2] == 1 else pattern.float().cumsum(2)
    if before is None:
        return total
    return total + torch.nn.functional.pad(before, (0, pattern.shape[-1] - before.shape[-1]))[:, :, None]


@dataclass(frozen=True)
class Marks:
    """What the tokens of a prompt are, for as many rows as the batch has now; what follows is generated."""

    image: Bool[Tensor, "batch prompt"]
    real: Bool[Tensor, "batch prompt"]
    made: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What `once` keeps."""

    @classmethod
    def of(cls, inputs: Inputs) -> "Marks":
        """The marks of a batch."""
        return cls(inputs.image_mask, inputs.attention_mask.bool())

    def once(self, name: str, call: AttentionCall, n_keys: int, make: Callable[[], V]) -> V:
        """What `make` gives, made in the first layer of a step for all of them."""
        step = len(call.query), n_keys, call.query.device
        if self.made.get("step") != step:
            self.made.clear()
            self.made["step"] = step
        if name not in self.made:
            self.made[name] = make()
        return self.made[name]

    def rows(self, call: AttentionCall, n_keys: int) -> tuple[Tensor, Tensor]:
        """Image keys and generated keys `[batch, key]` among the first `n_keys` tokens, rows repeated for beams."""

        def make() -> tuple[Tensor, Tensor]:
            copies = call.query.shape[0] // self.image.shape[0]
            image = self.image.repeat_interleave(copies, 0).to(call.query.device)
            more = n_keys - image.shape[1]
            nothing = image.new_zeros(len(image), more)
            return torch.cat([image, nothing], 1), torch.cat([torch.zeros_like(image), ~nothing], 1)

        return self.once("rows", call, n_keys, make)

    def padding(self, call: AttentionCall, n_keys: int) -> Bool[Tensor, "batch key"]:
        """Which of the first `n_keys` tokens are padding, rows repeated for beams."""
        copies = call.query.shape[0] // self.real.shape[0]
        empty = ~self.real.repeat_interleave(copies, 0).to(call.query.device)
        return torch.nn.functional.pad(empty, (0, n_keys - empty.shape[1]))


Choose = Callable[[int, AttentionCall, NotedLayer[N], Marks], tuple[AttentionCall, Tensor | None] | None]
"""What a layer attends to: from layer, call, its cache and the marks, the call to make and its probabilities
`[batch, head, query, key]`, None for those that its scores and its mask give; None at all: as the model would."""
KERNEL = "sdpa"
"""The backend that takes a mask of its own for each head."""


@contextmanager
def attending(
    model: LVLM,
    inputs: Inputs,
    choose: Choose[N],
    notes: Callable[[], N] = Notes,  # pyright: ignore[reportArgumentType]
    layers: Sequence[int] | None = None,
) -> Iterator[GenerateOptions]:
    """While open, `choose` decides what each layer of generate's own passes attends to; `notes` starts a layer's."""
    cache = [NotedLayer(notes()) for _ in range(model.n_layers)]
    marks, own_kernel = Marks.of(inputs), model.backend.removeprefix(PREFIX) == KERNEL

    def watch_of(layer: int) -> Any:
        def watch(call: AttentionCall) -> Any:  # of the main pass those calls that read this cache
            mine = model.now.name == "main" and call.key is cache[layer].keys
            found = choose(layer, call, cache[layer], marks) if mine else None
            if found is not None and found[1] is None and not own_kernel:
                return found[0], found[0].pattern()
            return found

        return watch

    chosen = range(model.n_layers) if layers is None else layers
    watches = {model.part(layer, model.family.attention): watch_of(layer) for layer in chosen}
    with watched(model.decoder_configs, watches):
        yield GenerateOptions(cache=Cache(layers=list(cache)))
