"""Where on its picture each image token looks: grids, tiles and thumbnails, found from the processed inputs."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from PIL.Image import Image

from interp.models import compat
from interp.models.inputs import Inputs
from interp.models.lvlm import LVLM

WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Piece:
    """A grid of image tokens over a part of a picture.

    `tokens` are places in the sequence; `box` is left, top, right, bottom as shares of the picture.
    """

    tokens: Int[np.ndarray, "row column"]
    box: tuple[float, float, float, float]


@dataclass
class _Row:
    """The image tokens of one prompt, handed out in order."""

    model: LVLM
    inputs: Inputs
    row: int
    used: int = 0

    @property
    def places(self) -> np.ndarray:
        return self.inputs.image_mask[self.row].nonzero()[:, 0].cpu().numpy()

    @property
    def first_picture(self) -> int:
        """The number of the row's first picture in the batch."""
        return sum(len(row) for row in self.inputs.pictures[: self.row])

    def take(self, height: int, width: int) -> np.ndarray:
        """The next tokens, as a grid."""
        self.used += height * width
        return self.places[self.used - height * width : self.used].reshape(height, width)

    def left(self) -> int:
        return len(self.places) - self.used

    def run(self) -> int:
        """How many of the next tokens stand side by side."""
        ahead = self.places[self.used :]
        breaks = np.flatnonzero(np.diff(ahead) != 1)
        return int(breaks[0]) + 1 if len(breaks) else len(ahead)


def _square(row: _Row, _: int, picture: Image) -> list[Piece]:
    """One square grid; over the middle of the picture where the processor crops."""
    side = isqrt(len(row.places) // len(row.inputs.pictures[row.row]))
    w, h = picture.size
    cropped = getattr(row.model.processor.image_processor, "do_center_crop", False)
    x, y = ((1 - min(w, h) / w) / 2, (1 - min(w, h) / h) / 2) if cropped else (0.0, 0.0)
    return [Piece(row.take(side, side), (x, y, 1 - x, 1 - y))]


def _anyres(row: _Row, i: int, _: Image) -> list[Piece]:
    """LLaVA-NeXT and -OneVision: the whole picture, then tiles without their padding, a newline after each line."""
    config = row.model.hf.config
    side = config.vision_config.image_size // config.vision_config.patch_size
    size = row.inputs.pixels["image_sizes"][row.first_picture + i].tolist()
    base = [Piece(row.take(side, side), WHOLE)]
    if "batch_num_images" in row.inputs.pixels and len(row.inputs.pictures[row.row]) > 1:
        row.take(1, 1)  # OneVision shows several pictures without tiles, and one newline
        return base
    shape = compat.anyres_grid_shape(size, config.image_grid_pinpoints, config.vision_config.image_size)
    height, width = compat.unpadded(torch.empty(1, shape[0] * side, shape[1] * side), size).shape[1:]
    if limit := re.fullmatch(r"anyres_max_(\d+)", getattr(config, "vision_aspect_ratio", "")):
        ratio = (height * width / (int(limit[1]) * side**2)) ** 0.5
        height, width = (int(height // ratio), int(width // ratio)) if ratio > 1.1 else (height, width)
    return [*base, Piece(row.take(height, width + 1)[:, :-1], WHOLE)]


def _grid(row: _Row, i: int, _: Image) -> list[Piece]:
    """Qwen: one grid of any size."""
    _, height, width = row.inputs.pixels["image_grid_thw"][row.first_picture + i].tolist()
    merge = row.model.hf.config.vision_config.spatial_merge_size
    return [Piece(row.take(height // merge, width // merge), WHOLE)]


def _lines(row: _Row, i: int, _: Image) -> list[Piece]:
    """Mistral 3: lines of tokens with breaks between them."""
    config = row.model.hf.config
    patch = config.vision_config.patch_size * config.spatial_merge_size
    height, width = (int(x) // patch for x in row.inputs.pixels["image_sizes"][row.first_picture + i])
    return [Piece(row.take(height, width), WHOLE)]


def _named_tiles(row: _Row, *_: Any) -> list[Piece]:
    """Idefics3, SmolVLM: tiles named by row and column, then the whole picture."""
    tiles: dict[tuple[int, int], np.ndarray] = {}
    while row.left():
        name = row.model.tokenizer.decode([int(row.inputs.input_ids[row.row, row.places[row.used] - 1])])
        side = isqrt(row.run())
        tokens = row.take(side, side)
        place = re.fullmatch(r"<row_(\d+)_col_(\d+)>", name.strip())
        if place is None:
            return [*_tiled(tiles), Piece(tokens, WHOLE)]
        tiles[int(place[1]) - 1, int(place[2]) - 1] = tokens
    return list(_tiled(tiles))


def _tiled(tiles: dict[tuple[int, int], np.ndarray]) -> Iterator[Piece]:
    """Tiles of one size that fill the picture."""
    rows, columns = (max((place[axis] for place in tiles), default=0) + 1 for axis in (0, 1))
    for (r, c), tokens in tiles.items():
        yield Piece(tokens, (c / columns, r / rows, (c + 1) / columns, (r + 1) / rows))


def _canvas(row: _Row, _: int, picture: Image) -> list[Piece]:
    """InternVL: tiles of the best canvas line by line, then a thumbnail if there are several."""
    images, side = row.model.processor.image_processor, isqrt(row.model.processor.image_seq_length)
    tile = (images.size["height"], images.size["width"])
    size = (picture.height, picture.width)
    columns, rows = compat.optimal_tiled_canvas(size, tile, images.min_patches, images.max_patches)
    if not images.crop_to_patches or columns * rows == 1:
        return [Piece(row.take(side, side), WHOLE)]
    tiles = {(r, c): row.take(side, side) for r in range(rows) for c in range(columns)}
    return [*_tiled(tiles), Piece(row.take(side, side), WHOLE)]


LAYOUTS: dict[str, Callable[[_Row, int, Image], list[Piece]]] = {
    "square": _square,
    "anyres": _anyres,
    "grid": _grid,
    "lines": _lines,
    "named tiles": _named_tiles,
    "canvas": _canvas,
}


def layout(model: LVLM, inputs: Inputs, row: int = 0) -> list[list[Piece]]:
    """For each picture of a prompt, the pieces that its tokens form.

    Raises ValueError for families whose image tokens have no place on the picture (Q-Formers).
    """
    kind = model.family.layout
    if kind is None:
        raise ValueError(f"the image tokens of a {model.family.name} model have no places on the picture")
    tokens = _Row(model, inputs, row)
    pieces = [LAYOUTS[kind](tokens, i, picture) for i, picture in enumerate(inputs.pictures[row])]
    assert not tokens.left(), f"{tokens.left()} image tokens of {len(tokens.places)} have no place"
    return pieces
