"""Writing testbed scenes as files: a COCO-format data set, POPE questions, a contact sheet."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from interp.testbed.draw import draw
from interp.testbed.language import caption
from interp.testbed.score import POPE_SETTINGS, pope_questions
from interp.testbed.world import CATEGORIES, CELL, IMAGE_SIZE, KINDS, Kind, Split, Thing, scene

REFERENCES = 5


def _box(thing: Thing) -> list[float]:
    """`[x, y, width, height]` in pixels, COCO's `bbox`."""
    x = thing.column * CELL + CELL / 2 + thing.offset[0] - thing.size / 2
    y = thing.row * CELL + CELL / 2 + thing.offset[1] - thing.size / 2
    return [round(v, 2) for v in (x, y, thing.size, thing.size)]


def export(out: Path, kind: Kind, split: Split, n: int, seed: int = 0) -> None:
    """Write a COCO folder: `annotations/{instances,captions}_SPLIT.json`, `SPLIT/*.png`; and `pope_SETTING.json`."""
    (out / "annotations").mkdir(parents=True, exist_ok=True)
    (out / split).mkdir(exist_ok=True)
    images, instances, captions = [], [], []
    for index in range(n):
        s = scene(kind, split, index, seed)
        name = f"{split}_{index:06d}.png"
        Image.fromarray(draw(s)).save(out / split / name)
        images.append({"id": index, "file_name": name, "width": IMAGE_SIZE, "height": IMAGE_SIZE})
        for thing in s.things:
            instances.append(
                {
                    "id": len(instances) + 1,
                    "image_id": index,
                    "category_id": CATEGORIES.index(thing.category) + 1,
                    "bbox": _box(thing),
                    "area": round(thing.size**2, 2),
                    "iscrowd": 0,
                }
            )
        for reference in range(REFERENCES):
            told = caption(s, np.random.default_rng([seed, 9, index, reference])).text
            captions.append({"id": len(captions) + 1, "image_id": index, "caption": told})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CATEGORIES)]
    info = {"description": f"interp testbed, {kind} scenes, split {split}, seed {seed}"}
    for name, content in (
        (f"instances_{split}", {"info": info, "images": images, "annotations": instances, "categories": categories}),
        (f"captions_{split}", {"info": info, "images": images, "annotations": captions}),
    ):
        (out / "annotations" / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    for setting in POPE_SETTINGS:
        lines = [
            {
                "question_id": i + 1,
                "image": f"{split}_{q.index:06d}.png",
                "text": q.text,
                "label": "yes" if q.present else "no",
            }
            for i, q in enumerate(pope_questions(kind, split, n, setting, seed))
        ]
        (out / f"pope_{setting}.json").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def contact_sheet(columns: int = 8, split: Split = "dev", scale: int = 2, seed: int = 0) -> Image.Image:
    """A row of scenes of each kind, under its name."""
    side, title = IMAGE_SIZE * scale, 18
    sheet = Image.new("RGB", (columns * side, len(KINDS) * (side + title)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, kind in enumerate(KINDS):
        top = row * (side + title)
        pen.text((4, top + 3), kind, fill="black")
        for column in range(columns):
            picture = Image.fromarray(draw(scene(kind, split, column, seed)))  # pyright: ignore[reportArgumentType]
            sheet.paste(picture.resize((side, side), Image.Resampling.NEAREST), (column * side, top + title))
    return sheet
