"""What heads look at: attention over the image at the step that writes a word, laid over the picture."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from interp.evaluate.alignment import token_ends, tokens_of
from interp.models import LVLM, Head, Heads, Inputs, read
from interp.models.layout import Piece, layout
from interp.trace.attention import attention_statistics

FINEST = 12
"""Rows and columns at most of a coarse map; finer grids of image tokens are added up."""


@dataclass(frozen=True)
class Overlay:
    """Attention over the pictures of a prompt at one step.

    `heat[i]` is attention per area of picture i, `[row, column]` pixels, so that it sums to `image_mass`, the share of
    the step's attention that goes to tokens with a place on a picture.
    """

    pictures: tuple[Image.Image, ...]
    heat: tuple[Float[np.ndarray, "row column"], ...]
    word: str
    heads: tuple[Head, ...]
    image_mass: float


def spread(pieces: Sequence[Piece], attention: Float[np.ndarray, " token"], size: tuple[int, int]) -> np.ndarray:
    """Lay the attention of tokens over a picture of `size` (width, height): each spreads evenly over its cell."""
    width, height = size
    heat = np.zeros((height, width))
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    for piece in pieces:
        rows, columns = piece.tokens.shape
        left, top, right, bottom = piece.box
        column = np.floor((x - left) / (right - left) * columns).astype(int)
        row = np.floor((y - top) / (bottom - top) * rows).astype(int)
        across, down = (column >= 0) & (column < columns), (row >= 0) & (row < rows)
        pixels = np.outer(np.bincount(row[down], minlength=rows), np.bincount(column[across], minlength=columns))
        each = attention[piece.tokens] / np.maximum(pixels, 1)
        heat[np.ix_(down, across)] += each[np.ix_(row[down], column[across])]
    return heat


def coarse(pieces: Sequence[Piece], attention: Float[np.ndarray, " token"]) -> Float[np.ndarray, "row column"]:
    """The attention of tokens as a grid over the picture, of at most `FINEST` rows and columns; its sum is kept."""
    rows = max(round(p.tokens.shape[0] / (p.box[3] - p.box[1])) for p in pieces)
    columns = max(round(p.tokens.shape[1] / (p.box[2] - p.box[0])) for p in pieces)
    fine = spread(pieces, attention, (columns, rows))
    edges = [np.linspace(0, n, min(n, FINEST) + 1).round().astype(int)[:-1] for n in (rows, columns)]
    return np.add.reduceat(np.add.reduceat(fine, edges[0], axis=0), edges[1], axis=1)


def find_word(model: LVLM, caption: Int[Tensor, " token"], word: str, nth: int | None = None) -> int:
    """The index in a caption of the token that begins a word, the `nth` such word (from 1) if there are several.

    Raises ValueError, with the places, if the word is not there as a whole word, or there several times without `nth`.
    """

    def decode(ids: Sequence[int]) -> str:
        return model.tokenizer.decode(ids, skip_special_tokens=True)

    tokens = caption.tolist()
    text = decode(tokens).strip()
    bounded = rf"(?<!\w){re.escape(word.strip())}(?!\w)"
    places = [m.start() for m in re.finditer(bounded, text, re.IGNORECASE)] if word.strip() else []
    if not places:
        within = " (only inside other words)" if word.strip() and word.strip().lower() in text.lower() else ""
        raise ValueError(f"the caption does not say {word!r}{within}: {text!r}")
    if nth is None and len(places) > 1:
        shown = "; ".join(f"{i}: ...{text[max(0, at - 20) : at + 20]}..." for i, at in enumerate(places, 1))
        raise ValueError(f"the caption says {word!r} {len(places)} times, choose with nth: {shown}")
    if not 1 <= (nth or 1) <= len(places):
        raise ValueError(f"the caption says {word!r} {len(places)} times: nth is 1 to {len(places)}, got {nth}")
    start = places[(nth or 1) - 1]
    return tokens_of(token_ends(decode, tokens), start, start + len(word.strip())).start


def overlay(
    model: LVLM,
    inputs: Inputs,
    caption: Int[Tensor, " token"],
    word: str,
    heads: Heads | None = None,
    *,
    nth: int | None = None,
    without_sinks: bool = False,
    eps: float = 0.3,
) -> Overlay:
    """Where heads look at the step that predicts the first token of a word, averaged over them (None: all heads).

    `inputs` is a batch of one; `nth` picks one of several such words.  `without_sinks` leaves out, in each head, the
    tokens that receive more than `eps` over the whole sequence, and renormalises what is left.
    """
    if len(inputs.input_ids) != 1:
        raise ValueError(f"an overlay is drawn for a batch of one, got {len(inputs.input_ids)}")
    chosen = Head.of_model(heads, model)
    pieces = layout(model, inputs)
    whole = inputs.extended([caption])
    step = torch.tensor([[inputs.input_ids.shape[1] + find_word(model, caption, word, nth) - 1]], device=model.device)
    rows = read(model, whole, "pattern", positions=step)["pattern"][0, :, :, 0].float().cpu()
    if without_sinks:
        stats = attention_statistics(model, whole, len(caption), with_sparsity=False)
        rows = rows.masked_fill(stats.sinks(eps)[0], 0)
        rows = rows / rows.sum(-1, keepdim=True).clamp(min=1e-9)
    attention = torch.stack([rows[head.layer, head.head] for head in chosen]).mean(0).numpy()
    pictures = inputs.pictures[0]
    heat = tuple(spread(p, attention, picture.size) for p, picture in zip(pieces, pictures, strict=True))
    return Overlay(pictures, heat, word, chosen, float(sum(h.sum() for h in heat)))
