"""The inputs of a model: a left-padded batch of prompts with their pictures, and image-free ones."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import pad

from interp.pictures import upright_rgb

RENDERING_SECONDS = 10.0
LONGEST_PROMPT = 1_000_000


@dataclass(frozen=True)
class Inputs:
    """A batch as the model takes it.

    `image_mask` marks the tokens that stand for image features, `frame_mask` those that only frame a picture or
    its parts.  `position_ids` count each row's real tokens, padding is 0; M-RoPE models have several axes of them.
    `token_types` holds what else the processor says of each token, `pixels` what it made of the pictures.
    `texts` are the prompts as the processor read them, `pictures` each row's pictures.  `max_positions` is how many
    positions the model knows (None: no limit); ValueError if a row takes more.
    """

    input_ids: Int[Tensor, "batch token"]
    attention_mask: Int[Tensor, "batch token"]
    position_ids: Int[Tensor, "*axis batch token"]
    image_mask: Bool[Tensor, "batch token"]
    frame_mask: Bool[Tensor, "batch token"]
    pad_token_id: int
    token_types: dict[str, Int[Tensor, "batch token"]] = field(default_factory=dict)
    pixels: dict[str, Tensor] = field(default_factory=dict)
    suffix_type: int = 0
    texts: tuple[str, ...] = ()
    pictures: tuple[tuple[Image, ...], ...] = ()
    max_positions: int | None = None

    def __post_init__(self) -> None:
        self.require_room(0)

    def require_room(self, new_tokens: int) -> None:
        """ValueError if the model has no positions for so many more tokens a row."""
        if self.max_positions is None or self.position_ids.is_meta or not self.position_ids.numel():
            return
        taken = int(self.position_ids.max()) + 1
        if taken + new_tokens > self.max_positions:
            more = f" and {new_tokens} new tokens" if new_tokens else ""
            raise ValueError(
                f"the longest prompt takes {taken} positions{more}, but the model knows {self.max_positions} "
                "(max_position_embeddings): beyond them it was not trained; shorten the prompt, use fewer or smaller "
                "pictures, or ask for fewer new tokens"
            )

    @property
    def last(self) -> Int[Tensor, " batch"]:
        """Index of each row's last real token."""
        n = self.attention_mask.shape[1]
        return n - 1 - self.attention_mask.flip(-1).argmax(-1)

    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the model's `forward` and `generate`."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": self.position_ids,
            **self.token_types,
            **self.pixels,
        }

    def without_image(self, keep_pixels: bool = False) -> "Inputs":
        """The image-free prompts `remove`: image tokens and their frames are deleted, positions are counted anew.

        `keep_pixels` leaves pictures that no token stands for, for models that insist on some.
        """
        keep = self.attention_mask.bool() & ~self.image_mask & ~self.frame_mask
        longest = int(keep.sum(-1).max())
        # real tokens move to the right end, in their order
        order = keep.int().argsort(dim=-1, stable=True)[:, -longest:]
        mask = keep.gather(-1, order).to(self.attention_mask)

        def moved(x: Tensor, empty: int) -> Tensor:
            return x.gather(-1, order).masked_fill(mask == 0, empty)

        nothing = torch.zeros_like(mask, dtype=torch.bool)
        return replace(
            self,
            input_ids=moved(self.input_ids, self.pad_token_id),
            attention_mask=mask,
            position_ids=counted(mask).expand(*self.position_ids.shape[:-1], -1),
            image_mask=nothing,
            frame_mask=nothing,
            token_types={name: moved(types, 0) for name, types in self.token_types.items()},
            pixels=self.pixels if keep_pixels else {},
            pictures=tuple(() for _ in self.pictures),
        )

    def with_image_masked(self, keep_pixels: bool = False) -> "Inputs":
        """The image-free prompts `mask`: image tokens and their frames keep their places, unseen by text."""
        hidden = self.image_mask | self.frame_mask
        return replace(
            self,
            input_ids=self.input_ids.masked_fill(hidden, self.pad_token_id),
            attention_mask=self.attention_mask.masked_fill(hidden, 0),
            image_mask=torch.zeros_like(hidden),
            frame_mask=torch.zeros_like(hidden),
            token_types={name: types.masked_fill(hidden, 0) for name, types in self.token_types.items()},
            pixels=self.pixels if keep_pixels else {},
            pictures=tuple(() for _ in self.pictures),
        )

    def repeated(self, copies: int) -> "Inputs":
        """The batch so many times over, without what was made of the pictures: for passes that need no more of them."""
        return replace(
            self,
            input_ids=self.input_ids.repeat(copies, 1),
            attention_mask=self.attention_mask.repeat(copies, 1),
            position_ids=self.position_ids.repeat(*[1] * (self.position_ids.ndim - 2), copies, 1),
            image_mask=self.image_mask.repeat(copies, 1),
            frame_mask=self.frame_mask.repeat(copies, 1),
            token_types={name: types.repeat(copies, 1) for name, types in self.token_types.items()},
            pixels={},
            texts=self.texts * copies,
            pictures=self.pictures * copies,
        )

    def extended(self, continuations: Sequence[Int[Tensor, " _"]]) -> "Inputs":
        """The batch with one more stretch of tokens a row (of a finished caption, say), padded on the right."""
        if len(continuations) != len(self.input_ids):
            raise ValueError(
                f"expected a continuation for each of the {len(self.input_ids)} rows, got {len(continuations)}"
            )
        longest = max(len(c) for c in continuations)
        ids = self.input_ids.new_full((len(continuations), longest), self.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(continuations):
            ids[row, : len(tokens)] = tokens.to(ids.device)
            mask[row, : len(tokens)] = 1
        more = torch.arange(1, longest + 1, device=ids.device)
        reached = self.position_ids.amax(-1).reshape(-1, len(ids)).amax(0)  # over all axes
        positions = (reached[:, None] + more) * mask
        return replace(
            self,
            input_ids=torch.cat([self.input_ids, ids], 1),
            attention_mask=torch.cat([self.attention_mask, mask], 1),
            position_ids=torch.cat([self.position_ids, positions.expand(*self.position_ids.shape[:-1], -1)], -1),
            image_mask=pad(self.image_mask, (0, longest)),
            frame_mask=pad(self.frame_mask, (0, longest)),
            token_types={
                name: torch.cat([types, torch.full_like(ids, self.suffix_type, dtype=types.dtype)], 1)
                for name, types in self.token_types.items()
            },
        )


def counted(mask: Int[Tensor, "batch token"]) -> Int[Tensor, "batch token"]:
    """Positions counted from each row's first real token; padding is 0."""
    return (mask.cumsum(-1) - 1).clamp(min=0) * mask


def interleave(first: Inputs, second: Inputs) -> Inputs:
    """Two batches as one of twice the rows, row by row in turn; the shorter one is padded on the left.

    The pixels are those of `first`: right where `second` has no pictures.
    """
    longest = max(first.input_ids.shape[1], second.input_ids.shape[1])

    def both(a: Tensor, b: Tensor, empty: int = 0) -> Tensor:
        rows = [pad(x, (longest - x.shape[-1], 0), value=empty) for x in (a, b)]
        return torch.stack(rows, dim=-2).flatten(-3, -2)

    def turns(a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x for two in zip(a, b, strict=True) for x in two)

    return replace(
        first,
        input_ids=both(first.input_ids, second.input_ids, first.pad_token_id),
        attention_mask=both(first.attention_mask, second.attention_mask),
        position_ids=both(first.position_ids, second.position_ids),
        image_mask=both(first.image_mask, second.image_mask),
        frame_mask=both(first.frame_mask, second.frame_mask),
        token_types={name: both(types, second.token_types[name]) for name, types in first.token_types.items()},
        texts=turns(first.texts, second.texts),
        pictures=turns(first.pictures, second.pictures),
    )


def padded_right(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """A Q-Former's text, padded by its processor on the language model's side; it counts positions from the left."""
    order = mask.argsort(dim=-1, descending=True, stable=True)
    return {"qformer_input_ids": ids.gather(-1, order), "qformer_attention_mask": mask.gather(-1, order)}


def position_limit(config: Any) -> int | None:
    """How many positions a decoder knows, from its configuration; None if that names no limit.

    Rotary positions that are stretched know more than `max_position_embeddings`, by their factor.
    """
    limit = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]  # some have one a layer type
    stretched = [k.get("factor") or 1 for k in kinds if k.get("rope_type") in ("linear", "dynamic", "yarn")]
    return None if limit is None else int(limit * max([1.0, *stretched]))


def read_pictures(row: Image | Sequence[Image], index: int) -> tuple[Image, ...]:
    """The pictures of a row, read, upright and in RGB."""
    pictures = [row] if isinstance(row, Image) else list(row)
    try:
        return tuple(upright_rgb(picture) for picture in pictures)
    except Exception as error:  # a picture is read here, and its decoder may raise anything
        raise ValueError(
            f"cannot read a picture of row {index} (expected PIL images of whole files): {error}"
        ) from error


def rendered(processor: Any, turn: list[dict[str, Any]]) -> str:
    """A turn as the processor's chat template writes it; ValueError if that fails, or does not end.

    A template is a program that comes with a model: it runs in Jinja's sandbox, and here with a limit of time.
    """
    begun, before = time.thread_time(), sys.gettrace()

    def watch(*_: Any) -> Any:  # called at every line that runs below
        if time.thread_time() - begun > RENDERING_SECONDS:
            raise TimeoutError(f"it does not end within {RENDERING_SECONDS:g} s")
        return watch

    sys.settrace(watch)
    try:
        text = processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        if len(text) > LONGEST_PROMPT:
            raise OverflowError(f"it writes {len(text)} characters")
    except Exception as error:  # whatever a program of strangers runs into
        raise ValueError(
            f"the chat template of this {type(processor).__name__} cannot be used: {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.settrace(before)
    return text
