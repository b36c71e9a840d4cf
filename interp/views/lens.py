"""The logit lens on one picture and its caption: what layers say at each token, and at each place of the picture."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int
from PIL.Image import Image
from torch import Tensor

from interp import plots
from interp.attribution.lens import STREAMS, Lens, lens
from interp.models import LVLM, Inputs
from interp.models.layout import layout

Over = Literal["text", "image"]


@dataclass(frozen=True)
class LensView:
    """A lens over the steps that wrote a caption (`text`), or over the picture's tokens (`image`).

    `tokens` are those that stand at the positions; `grids` are the image tokens' rows and columns, a grid a piece, as
    indices into the positions, and `boxes` say which part of which picture each covers (left, top, right, bottom).
    """

    lens: Lens
    over: Over
    tokens: tuple[str, ...]
    grids: tuple[Int[np.ndarray, "row column"], ...] = ()
    boxes: tuple[tuple[int, tuple[float, float, float, float]], ...] = ()
    pictures: tuple[Image, ...] = ()

    def words(self, layer: int) -> list[str]:
        """The top word at each position after a layer."""
        return [self.lens.text(0, layer, i, 0) for i in range(len(self.tokens))]

    def shown(self, layers: range) -> str:
        """A table, a line a position (text) or a grid of words a layer (image)."""
        lines = []
        for layer in layers:
            words = [repr(w.strip()) for w in self.words(layer)]
            lines.append(f"layer {layer}")
            for grid in self.grids:
                wide = max(map(len, words))
                lines += ["  " + " ".join(f"{words[i]:<{wide}}" for i in row).rstrip() for row in grid]
            if not self.grids:
                scores = self.lens.score[0, layer, :, 0].tolist()
                rows = zip(self.tokens, words, scores, strict=True)
                lines += [f"  {token!r:<16} says {word:<16} {score:.3f}" for token, word, score in rows]
        return "\n".join(lines)

    def words_on(self, number: int, layer: int) -> list[plots.PlacedWord]:
        """The top word of every image token of a picture after a layer, with its place as shares of the picture."""
        words, score = self.words(layer), self.lens.score[0, layer, :, 0].cpu().numpy()
        placed = []
        for grid, (whose, (left, top, right, bottom)) in zip(self.grids, self.boxes, strict=True):
            if whose == number:
                high, wide = grid.shape
                for (row, column), i in np.ndenumerate(grid):
                    x, y = left + (right - left) * (column + 0.5) / wide, top + (bottom - top) * (row + 0.5) / high
                    first, *others = words[i].strip().split("/")  # names that begin with the same token
                    placed.append(plots.PlacedWord(first + "/…" * bool(others), float(score[i]), x, y))
        return placed

    def write(self, out: Path, layer: int = -1) -> None:
        """Save `lens.csv`, `lens.npz` and the figures in a folder: over the picture, what it says after `layer`."""
        out.mkdir(parents=True, exist_ok=True)
        ids, score = self.lens.ids[0].cpu().numpy(), self.lens.score[0].cpu().numpy()
        np.savez(out / "lens.npz", allow_pickle=False, ids=ids, score=score, positions=self.lens.positions[0].cpu())
        with (out / "lens.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("layer", "position", "token", "rank", "word", "score"))
            for at in np.ndindex(ids.shape):
                word = self.lens.texts[int(ids[at])]
                place = int(self.lens.positions[0, at[1]])
                writer.writerow((at[0], place, self.tokens[at[1]], at[2] + 1, word, round(float(score[at]), 6)))
        if self.lens.site in STREAMS:
            self._draw(out, range(len(ids))[layer])

    def _draw(self, out: Path, layer: int) -> None:
        words = [self.words(i) for i in range(len(self.lens.ids[0]))]
        plots.save(plots.logit_lens(words, self.lens.score[0, ..., 0].cpu().numpy(), self.tokens), out / "lens.png")
        for number, picture in enumerate(self.pictures):
            title = f"logit lens after layer {layer}: what the image tokens say"
            name = f"picture{number or ''}.png"
            plots.save(plots.words_over_picture(picture, self.words_on(number, layer), title), out / name)


def look_through(
    model: LVLM,
    inputs: Inputs,
    caption: Int[Tensor, " token"],
    site: str = "resid_post",
    over: Over = "text",
    words: list[str] | None = None,
    top: int = 5,
) -> LensView:
    """Look through the lens; `inputs` is a batch of one, `words` (None: all tokens) are those that compete.

    Over the `text`: the last position of the prompt and the caption's, each of which says the next token.  Raises
    ValueError where a model's image tokens have no places (Q-Formers), and for `result`, which has a word a head.
    """
    if len(inputs.input_ids) != 1:
        raise ValueError(f"a lens view is of a batch of one, got {len(inputs.input_ids)}")
    if site == "result":
        raise ValueError("result has a word for each head: use interp.attribution.lens.lens, or look at attn_out here")
    if over == "text":
        whole, n = inputs.extended([caption]), inputs.input_ids.shape[1]
        positions = torch.arange(n - 1, whole.input_ids.shape[1] - 1)
        grids, boxes, pictures = (), (), ()
    else:
        whole = inputs
        placed = [(number, piece) for number, picture in enumerate(layout(model, inputs)) for piece in picture]
        pieces = [piece.tokens for _, piece in placed]
        positions = torch.from_numpy(np.concatenate([p.ravel() for p in pieces]))
        starts = np.cumsum([0, *(p.size for p in pieces)])
        grids = tuple(np.arange(p.size).reshape(p.shape) + s for p, s in zip(pieces, starts, strict=False))
        boxes = tuple((number, piece.box) for number, piece in placed)
        pictures = inputs.pictures[0]
    seen = lens(model, whole, site, positions[None], words=words, top=top)
    tokens = tuple(model.tokenizer.decode([i]) for i in whole.input_ids[0, positions].tolist())
    return LensView(seen, over, tokens, grids, boxes, pictures)
