"""Drawing scenes: every category is a short list of primitives, so each has its own silhouette."""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from interp.testbed.world import CATEGORIES, CELL, COLOURS, IMAGE_SIZE, Scene, Thing

# Each primitive: (tool, coordinates in 0..100, shade); shade 1 is the thing's colour, less is darker.
Primitive = tuple[str, tuple[float, ...], float]
SHAPES: dict[str, tuple[Primitive, ...]] = {
    "banana": (("chord", (5, -30, 95, 80, 20, 160), 1), ("chord", (12, -45, 88, 55, 15, 165), 0)),
    "bench": (
        ("rect", (4, 22, 96, 34), 1), ("rect", (4, 40, 96, 52), 1), ("rect", (0, 60, 100, 70), 0.6),
        ("rect", (10, 70, 20, 96), 0.6), ("rect", (80, 70, 90, 96), 0.6),
    ),
    "bicycle": (
        ("ring", (0, 44, 44, 88, 8), 1), ("ring", (56, 44, 100, 88, 8), 1),
        ("line", (22, 66, 40, 30, 72, 30, 78, 66, 7), 0.6), ("line", (22, 66, 50, 66, 72, 30, 66, 18, 80, 18, 7), 0.6),
    ),
    "bird": (
        ("ellipse", (22, 40, 74, 80), 1), ("ellipse", (60, 22, 88, 50), 1), ("poly", (86, 32, 100, 38, 86, 44), 0.5),
        ("poly", (0, 34, 30, 50, 24, 66), 1), ("line", (44, 78, 44, 98, 5), 0.5), ("line", (56, 78, 56, 98, 5), 0.5),
    ),
    "boat": (("poly", (0, 66, 100, 66, 80, 94, 20, 94), 1), ("rect", (46, 4, 52, 66), 0.5), ("poly", (54, 8, 90, 58, 54, 58), 0.8)),
    "bottle": (("rect", (42, 2, 58, 30), 0.6), ("poly", (42, 30, 58, 30, 72, 46, 28, 46), 1), ("rect", (28, 46, 72, 98), 1), ("rect", (28, 60, 72, 78), 0.6)),
    "bowl": (("chord", (2, -6, 98, 92, 0, 180), 1), ("ellipse", (2, 34, 98, 54), 0.6), ("rect", (36, 88, 64, 96), 0.6)),
    "bus": (
        ("rect", (2, 14, 98, 80), 1), ("rect", (8, 22, 28, 44), 0.4), ("rect", (34, 22, 54, 44), 0.4),
        ("rect", (60, 22, 92, 44), 0.4), ("ellipse", (12, 68, 34, 92), 0.3), ("ellipse", (66, 68, 88, 92), 0.3),
    ),
    "car": (
        ("poly", (22, 48, 36, 24, 68, 24, 82, 48), 0.6), ("rect", (2, 46, 98, 72), 1),
        ("ellipse", (12, 60, 36, 86), 0.3), ("ellipse", (64, 60, 88, 86), 0.3),
    ),
    "clock": (("ellipse", (6, 6, 94, 94), 1), ("ellipse", (18, 18, 82, 82), 0.5), ("line", (50, 50, 50, 24, 7), 1), ("line", (50, 50, 70, 58, 7), 1)),
    "couch": (("rect", (12, 26, 88, 62), 0.7), ("rect", (0, 44, 16, 82), 1), ("rect", (84, 44, 100, 82), 1), ("rect", (14, 58, 86, 82), 1), ("rect", (48, 28, 52, 60), 0.4)),
    "cow": (
        ("rect", (18, 36, 80, 68), 1), ("rect", (20, 66, 28, 96), 1), ("rect", (70, 66, 78, 96), 1), ("rect", (78, 20, 100, 46), 1),
        ("line", (80, 20, 74, 6, 5), 0.5), ("line", (96, 20, 100, 6, 5), 0.5), ("ellipse", (30, 40, 48, 58), 0.3), ("ellipse", (56, 46, 70, 62), 0.3),
    ),
    "cup": (("poly", (14, 12, 70, 12, 62, 92, 22, 92), 1), ("ring", (58, 28, 94, 66, 9), 1), ("ellipse", (14, 4, 70, 20), 0.5)),
    "dog": (
        ("rect", (22, 44, 74, 66), 1), ("rect", (22, 62, 32, 94), 1), ("rect", (64, 62, 74, 94), 1), ("ellipse", (62, 18, 94, 50), 1),
        ("poly", (64, 22, 56, 48, 70, 42), 0.5), ("line", (24, 48, 6, 26, 8), 1),
    ),
    "fork": (("rect", (45, 44, 55, 98), 1), ("rect", (28, 34, 72, 46), 1), ("rect", (28, 2, 36, 36), 1), ("rect", (46, 2, 54, 36), 1), ("rect", (64, 2, 72, 36), 1)),
    "frisbee": (("ellipse", (2, 32, 98, 74), 1), ("ellipse", (18, 38, 82, 62), 0.6), ("ellipse", (36, 44, 64, 54), 1)),
    "keyboard": (
        ("rect", (0, 30, 100, 72), 1), *(("rect", (6 + 13 * i, 36, 14 + 13 * i, 44), 0.4) for i in range(7)),
        *(("rect", (6 + 13 * i, 48, 14 + 13 * i, 56), 0.4) for i in range(7)), ("rect", (24, 60, 76, 67), 0.4),
    ),
    "kite": (("poly", (50, 0, 82, 32, 50, 72, 18, 32), 1), ("line", (50, 2, 50, 70, 4), 0.5), ("line", (20, 32, 80, 32, 4), 0.5), ("line", (50, 72, 40, 80, 56, 88, 44, 99, 5), 0.6)),
    "knife": (("poly", (42, 0, 60, 18, 60, 58, 42, 58), 1), ("rect", (42, 58, 58, 99), 0.4)),
    "laptop": (("rect", (14, 12, 86, 64), 0.6), ("rect", (20, 18, 80, 58), 1), ("poly", (14, 66, 86, 66, 100, 88, 0, 88), 1), ("rect", (30, 70, 70, 78), 0.5)),
    "mouse": (("ellipse", (26, 22, 74, 98), 1), ("line", (50, 22, 50, 54, 5), 0.4), ("line", (27, 54, 73, 54, 5), 0.4), ("line", (50, 22, 58, 8, 44, 0, 5), 0.6)),
    "remote": (("rect", (34, 2, 66, 98), 1), ("ellipse", (42, 8, 58, 24), 0.3), *(("rect", (40 + 12 * (i % 2), 34 + 15 * (i // 2), 48 + 12 * (i % 2), 42 + 15 * (i // 2)), 0.3) for i in range(8))),
    "sheep": (
        *(("ellipse", (x, y, x + 32, y + 32), 1) for x, y in ((12, 30), (32, 22), (52, 30), (20, 46), (44, 46))),
        ("ellipse", (74, 28, 98, 60), 0.35), ("rect", (28, 74, 36, 96), 0.35), ("rect", (58, 74, 66, 96), 0.35),
    ),
    "stop sign": (("rect", (46, 58, 54, 100), 0.5), ("poly", (34, 0, 66, 0, 86, 20, 86, 46, 66, 64, 34, 64, 14, 46, 14, 20), 1), ("rect", (26, 26, 74, 38), 0.4)),
    "surfboard": (("poly", (50, 0, 62, 22, 66, 50, 60, 84, 50, 100, 40, 84, 34, 50, 38, 22), 1), ("line", (50, 4, 50, 96, 5), 0.5)),
    "traffic light": (("rect", (30, 0, 70, 78), 1), ("ellipse", (40, 4, 60, 24), 0.3), ("ellipse", (40, 29, 60, 49), 0.3), ("ellipse", (40, 54, 60, 74), 0.3), ("rect", (46, 78, 54, 100), 0.5)),
    "tv": (("rect", (0, 12, 100, 76), 1), ("rect", (8, 20, 92, 68), 0.35), ("rect", (44, 76, 56, 88), 0.7), ("rect", (26, 86, 74, 94), 0.7)),
    "umbrella": (("chord", (2, 4, 98, 96, 180, 360), 1), ("rect", (47, 50, 53, 92), 0.5), ("line", (53, 90, 46, 98, 38, 90, 5), 0.5), ("line", (50, 6, 30, 50, 3), 0.5), ("line", (50, 6, 70, 50, 3), 0.5)),
}  # fmt: skip
assert tuple(sorted(SHAPES)) == CATEGORIES

_SPRITE = 128


@cache
def _sprite(category: str) -> tuple[Image.Image, Image.Image]:
    """The category's shade (0..255) and coverage (0..255) at 128 px."""
    scale = _SPRITE / 100
    shade, cover = Image.new("L", (_SPRITE, _SPRITE)), Image.new("L", (_SPRITE, _SPRITE))
    for tool, numbers, level in SHAPES[category]:
        for image, ink in ((shade, round(255 * level)), (cover, 255 if level else 0)):
            pen = ImageDraw.Draw(image)
            xy = [n * scale for n in numbers]
            if tool == "rect":
                pen.rectangle(xy, fill=ink)
            elif tool == "ellipse":
                pen.ellipse(xy, fill=ink)
            elif tool == "poly":
                pen.polygon(xy, fill=ink)
            elif tool == "line":
                pen.line(xy[:-1], fill=ink, width=round(xy[-1]), joint="curve")
            elif tool == "ring":
                pen.ellipse(xy[:4], outline=ink, width=round(xy[4]))
            else:
                pen.chord(xy[:4], numbers[4], numbers[5], fill=ink)
    return shade, cover


def _background(seed: int) -> np.ndarray:
    """A muted, textured ground `[96, 96, 3]`, 0..255."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(95, 150) + rng.uniform(-14, 14, size=3)
    coarse = rng.normal(0, 9, size=(8, 8)).astype(np.float32)
    smooth = np.asarray(Image.fromarray(coarse).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))
    fine = rng.normal(0, 4, size=(IMAGE_SIZE, IMAGE_SIZE, 3))
    return base + smooth[:, :, None] + fine


def _stamp(thing: Thing) -> tuple[np.ndarray, np.ndarray, slice, slice]:
    """Colour `[h, w, 3]`, coverage `[h, w]` in 0..1 and the place of one thing on the canvas."""
    size = max(3, round(thing.size))
    layers = []
    for image in _sprite(thing.category):
        turned = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if thing.flip else image
        turned = turned.rotate(thing.angle, Image.Resampling.BILINEAR)
        layers.append(np.asarray(turned.resize((size, size), Image.Resampling.BOX), dtype=np.float32) / 255)
    shade, cover = layers
    shade = np.where(cover > 0, shade / np.maximum(cover, 1e-3), 0).clip(0, 1)[:, :, None]
    colour = np.asarray(COLOURS[thing.colour], dtype=np.float32)
    detail = np.full(3, 120.0) if thing.colour == "black" else colour * 0.15  # details on black are grey
    x = round(thing.column * CELL + CELL / 2 + thing.offset[0] - size / 2)
    y = round(thing.row * CELL + CELL / 2 + thing.offset[1] - size / 2)
    x, y = min(max(x, 0), IMAGE_SIZE - size), min(max(y, 0), IMAGE_SIZE - size)
    return shade * colour + (1 - shade) * detail, cover * thing.contrast, slice(y, y + size), slice(x, x + size)


def draw(scene: Scene) -> np.ndarray:
    """The scene's picture: uint8 `[96, 96, 3]`, the same for the same scene."""
    canvas = _background(scene.background)
    for thing in scene.things:
        colour, cover, rows, columns = _stamp(thing)
        canvas[rows, columns] += cover[:, :, None] * (colour - canvas[rows, columns])
    return canvas.clip(0, 255).round().astype(np.uint8)


def owners(scene: Scene, patch: int) -> np.ndarray:
    """Which thing each patch shows: int8 `[96 / patch, 96 / patch]`, index into `scene.things` or -1.

    A thing owns a patch if it covers at least 15 % of it, and more of it than any other thing.
    """
    n = IMAGE_SIZE // patch
    shares = np.zeros((len(scene.things) + 1, n, n), dtype=np.float32)
    shares[0] = 0.15
    for i, thing in enumerate(scene.things):
        _, cover, rows, columns = _stamp(thing)
        full = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
        full[rows, columns] = cover
        shares[i + 1] = full.reshape(n, patch, n, patch).mean(axis=(1, 3))
    return shares.argmax(axis=0).astype(np.int8) - 1
