"""What a study runs on: images with their true objects, from the testbed or from a COCO folder."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from interp.evaluate.coco import CocoImage, read_coco
from interp.evaluate.objects import ObjectParser
from interp.pictures import read_image
from interp.sources import SOURCES, Item, Source, open_source
from interp.testbed.draw import draw
from interp.testbed.score import scene_questions
from interp.testbed.world import EVALUATION_SCENES, KINDS, SPLITS, Kind, Split, scene


@dataclass(frozen=True)
class Sample:
    """An image and the categories in it."""

    image_id: int | str
    image: Image.Image
    truth: frozenset[str]


@dataclass(frozen=True)
class Data:
    """A data set: sorted image ids, and a function that loads one sample."""

    name: str
    image_ids: tuple[int | str, ...]
    load: Callable[[Any], Sample]
    questions: Callable[[Any], tuple[tuple[str, bool], ...]] | None = None
    """Yes/no questions about an image with their answers, if the data has some."""
    has_truth: bool = True
    """Whether what is in the images is known; captions cannot be scored without."""

    def chosen(self, path: Path) -> "Data":
        """The images that a file lists: ids one a line, a JSON list, or a manifest with `image_ids`; sorted."""
        try:
            text = path.read_text(encoding="utf-8")
            content = json.loads(text) if text.lstrip()[:1] in ("[", "{") else [int(x) for x in text.split()]
            ids = content["image_ids"] if isinstance(content, dict) else content
            wanted = sorted({int(i) for i in ids})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"cannot read image ids from {path} ({error}); expected one a line, a JSON list, or a manifest.json"
            ) from error
        unknown = sorted(set(wanted) - set(self.image_ids))
        if unknown or not wanted:
            raise ValueError(f"{path}: expected ids of {self.name}, got {len(unknown)} others, such as {unknown[:3]}")
        return replace(self, image_ids=tuple(wanted))

    def limited(self, limit: int | None, seed: int) -> "Data":
        """A seeded sample of `limit` images, sorted; all of them if there are fewer or `limit` is None."""
        if limit is None or limit >= len(self.image_ids):
            return self
        picked = np.random.default_rng(seed).choice(len(self.image_ids), size=limit, replace=False)
        return replace(self, image_ids=tuple(self.image_ids[i] for i in sorted(picked)))


def _load_scene(kind: Kind, split: Split, image_id: int) -> Sample:
    s = scene(kind, split, image_id)
    return Sample(image_id, Image.fromarray(draw(s)), s.categories)


def _questions(kind: Kind, split: Split, image_id: int) -> tuple[tuple[str, bool], ...]:
    return tuple((q.text, q.present) for q in scene_questions(kind, split, image_id, "adversarial"))


def _load_file(images: dict[int, CocoImage], image_id: int) -> Sample:
    return Sample(image_id, read_image(images[image_id].path), images[image_id].truth)


def _load_item(items: Mapping[int | str, Item], image_id: int | str) -> Sample:
    item = items[image_id]
    return Sample(image_id, read_image(item.picture()), item.truth or frozenset())


def _of_items(name: str, source: Source) -> Data:
    """A user's own pictures, sorted by id."""
    items = source.items
    ids = tuple(sorted(items, key=lambda i: (isinstance(i, str), i)))
    asked = any(item.questions for item in items.values())
    return Data(
        name,
        ids,
        partial(_load_item, items),
        (lambda i: items[i].questions) if asked else None,
        source.has_truth,
    )


def open_data(name: str, split: str | None, parser: ObjectParser) -> Data:
    """Open `testbed:KIND`, `coco:FOLDER`, or what `interp.sources` names.

    `split` defaults to `test`, or to the COCO folder's only one.
    """
    source, _, place = name.partition(":")
    if source == "testbed" and place in KINDS:
        if split not in (None, *SPLITS):
            raise ValueError(f"the testbed's splits are {', '.join(SPLITS)}, got {split!r}")
        chosen = cast(Split, split or "test")
        kind = cast(Kind, place)
        ask = partial(_questions, kind, chosen)
        return Data(name, tuple(range(EVALUATION_SCENES)), partial(_load_scene, kind, chosen), ask)
    if source in SOURCES and place:
        return _of_items(name, open_source(name, split, parser))
    if source == "coco" and place:
        images = dict(read_coco(Path(place), split, parser))
        return Data(name, tuple(sorted(images)), partial(_load_file, images))
    known = [*(f"testbed:{kind}" for kind in KINDS), "coco:FOLDER", *(f"{kind}:..." for kind in SOURCES)]
    raise ValueError(f"unknown data {name!r}; expected one of {', '.join(known)}")
