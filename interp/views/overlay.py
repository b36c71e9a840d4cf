"""What heads look at: attention over the image at the step that writes a word, laid over the picture."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from interp.evaluate.alignment import token_ends, tokens_of
from interp.models import LVLM, Head, Inputs, read
from interp.models.layout import Piece, layout
from interp.trace.attention import attention_statistics


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


def find_word(model: LVLM, caption: Int[Tensor, " token"], word: str) -> int:
    """The index in a caption of the token that begins a word; ValueError if the word is not there."""

    def decode(ids: Sequence[int]) -> str:
        return model.tokenizer.decode(ids, skip_special_tokens=True)

    tokens = caption.tolist()
    text = decode(tokens).strip()
    start = text.lower().find(word.lower())
    if not word or start < 0:
        raise ValueError(f"the caption does not say {word!r}: {text!r}")
    return tokens_of(token_ends(decode, tokens), start, start + len(word)).start


def overlay(
    model: LVLM,
    inputs: Inputs,
    caption: Int[Tensor, " token"],
    word: str,
    heads: Sequence[Head] | None = None,
    *,
    without_sinks: bool = False,
    eps: float = 0.3,
) -> Overlay:
    """Where heads look at the step that predicts the first token of a word, averaged over them (None: all heads).

    `inputs` is a batch of one.  `without_sinks` leaves out, in each head, the tokens that receive more than `eps` over
    the whole sequence, and renormalises what is left.
    """
    if len(inputs.input_ids) != 1:
        raise ValueError(f"an overlay is drawn for a batch of one, got {len(inputs.input_ids)}")
    chosen = [Head(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
    wrong = [str(h) for h in heads or () if h not in chosen]
    if wrong:
        raise ValueError(f"this model has heads L0H0 to {chosen[-1]}, got {', '.join(wrong)}")
    chosen = chosen if heads is None else list(heads)
    pieces = layout(model, inputs)
    whole = inputs.extended([caption])
    step = torch.tensor([[inputs.input_ids.shape[1] + find_word(model, caption, word) - 1]], device=model.device)
    rows = read(model, whole, "pattern", positions=step)["pattern"][0, :, :, 0].float().cpu()
    if without_sinks:
        stats = attention_statistics(model, whole, len(caption), with_sparsity=False)
        rows = rows.masked_fill(stats.sinks(eps)[0], 0)
        rows = rows / rows.sum(-1, keepdim=True).clamp(min=1e-9)
    attention = torch.stack([rows[head.layer, head.head] for head in chosen]).mean(0).numpy()
    pictures = inputs.pictures[0]
    heat = tuple(spread(p, attention, picture.size) for p, picture in zip(pieces, pictures, strict=True))
    return Overlay(pictures, heat, word, tuple(chosen), float(sum(h.sum() for h in heat)))
