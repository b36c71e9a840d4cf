"""The inputs of a model: a left-padded batch of prompts, with its pictures or without them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Inputs:
    """A batch as the model takes it.

    `input_ids` and `attention_mask` are `[batch, token]`; `pixels` holds what the processor made of the
    pictures (empty for a batch without pictures); `image_token_id` is the placeholder's id.
    """

    input_ids: Int[Tensor, "batch token"]
    attention_mask: Int[Tensor, "batch token"]
    image_token_id: int
    pad_token_id: int
    pixels: dict[str, Tensor] = field(default_factory=dict)

    @property
    def image_mask(self) -> Bool[Tensor, "batch token"]:
        """Which positions are image tokens."""
        return (self.input_ids == self.image_token_id) & self.attention_mask.bool()

    @property
    def position_ids(self) -> Int[Tensor, "batch token"]:
        """Positions counted from each row's first real token; padding is 0."""
        return (self.attention_mask.cumsum(-1) - 1).clamp(min=0)

    @property
    def last(self) -> Int[Tensor, " batch"]:
        """Index of each row's last real token."""
        n = self.attention_mask.shape[1]
        return n - 1 - self.attention_mask.flip(-1).argmax(-1)

    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the model's `generate`, which counts positions itself."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask, **self.pixels}

    def forward_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the model's `forward`, positions included."""
        return self.kwargs() | {"position_ids": self.position_ids}

    def without_image(self) -> "Inputs":
        """The image-free twin: the same prompts with the image tokens deleted from the sequence (`remove`)."""
        keep = self.attention_mask.bool() & ~self.image_mask
        return replace(
            self,
            **_left_pad([row[k] for row, k in zip(self.input_ids, keep, strict=True)], self.pad_token_id),
            pixels={},
        )

    def extended(self, continuations: Sequence[Int[Tensor, " _"]]) -> "Inputs":
        """The batch with one more stretch of tokens a row (of a finished caption, say), padded on the right."""
        if len(continuations) != len(self.input_ids):
            raise ValueError(
                f"expected a continuation for each of the {len(self.input_ids)} rows, got {len(continuations)}"
            )
        longest = max(len(c) for c in continuations)
        ids = torch.full((len(continuations), longest), self.pad_token_id, device=self.input_ids.device)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(continuations):
            ids[row, : len(tokens)] = tokens.to(ids.device)
            mask[row, : len(tokens)] = 1
        return replace(
            self,
            input_ids=torch.cat([self.input_ids, ids], 1),
            attention_mask=torch.cat([self.attention_mask, mask], 1),
        )


def _left_pad(rows: Sequence[Int[Tensor, " _"]], pad: int) -> dict[str, Tensor]:
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad, device=rows[0].device)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, longest - len(row) :] = row
        mask[i, longest - len(row) :] = 1
    return {"input_ids": ids, "attention_mask": mask}


@dataclass(frozen=True)
class Embedded:
    """A batch as the decoder takes it: embeddings with the pictures merged in."""

    inputs_embeds: Float[Tensor, "batch token d_model"]
    attention_mask: Int[Tensor, "batch token"]
    position_ids: Int[Tensor, "batch token"]

    def forward_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the model's `forward`."""
        return {
            "inputs_embeds": self.inputs_embeds,
            "attention_mask": self.attention_mask,
            "position_ids": self.position_ids,
        }


def interleave(first: Embedded, second: Embedded) -> Embedded:
    """Both batches as one of twice the rows, row by row in turn; the shorter one is padded on the left."""
    longest = max(first.attention_mask.shape[1], second.attention_mask.shape[1])

    def both(a: Tensor, b: Tensor) -> Tensor:
        rows = a.new_zeros(2 * a.shape[0], longest, *a.shape[2:])
        rows[0::2, longest - a.shape[1] :] = a
        rows[1::2, longest - b.shape[1] :] = b
        return rows

    return Embedded(
        both(first.inputs_embeds, second.inputs_embeds),
        both(first.attention_mask, second.attention_mask),
        both(first.position_ids, second.position_ids),
    )
