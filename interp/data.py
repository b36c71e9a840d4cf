"""What an experiment runs on: images with their true objects and questions, from the testbed, COCO or other files."""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from interp.evaluate.coco import CocoImage, find_split, read_coco
from interp.evaluate.files import Question, read_questions
from interp.evaluate.objects import ObjectParser
from interp.pictures import read_image
from interp.sources import SOURCES, Item, Source, open_source
from interp.testbed.draw import draw
from interp.testbed.score import scene_questions
from interp.testbed.world import ANCHOR_OF, EVALUATION_SCENES, KINDS, PARTNER_OF, SPLITS, Kind, Split, scene

ImageId = int | str
"""A number, or the file name of an image that a question file names."""


@dataclass(frozen=True)
class Sample:
    """An image and the categories in it."""

    image_id: ImageId
    image: Image.Image
    truth: frozenset[str]


@dataclass(frozen=True)
class Data:
    """A data set: sorted image ids, and a function that loads one sample."""

    name: str
    image_ids: tuple[ImageId, ...]
    load: Callable[[ImageId], Sample]
    questions: Callable[[Sequence[ImageId]], tuple[Question, ...]] | None = None
    """Yes/no questions about images, if the data has some."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """The files that say what is in the data, by a name that does not depend on where they lie."""
    has_truth: bool = True
    """Whether what is in the images is known; captions cannot be scored without."""
    erased: Callable[[ImageId, Collection[str]], Image.Image] | None = None
    """The image drawn anew without some of its objects, where the data can."""
    tied: Mapping[str, str] = field(default_factory=dict)
    """Objects that a known habit of the data ties to each other, both ways; nothing where habits are unknown."""

    def selected(self, limit: int | None, seed: int, ids: str | None = None) -> "Data":
        """The images of an experiment: those that the file `ids` lists, else a seeded sample of `limit`."""
        return self.limited(limit, seed) if ids is None else self.chosen(Path(ids))

    def chosen(self, path: Path) -> "Data":
        """The images that a file lists: ids one a line, a JSON list, or a manifest with `image_ids`; sorted.

        Images that go by file names may be listed by the number in the name.  ValueError names what is not there.
        """
        listed = [self._named(entry, path) for entry in read_ids(path)]
        unknown = sorted(set(listed) - set(self.image_ids), key=str)
        if unknown or not listed:
            raise ValueError(f"{path}: expected ids of {self.name}, got {len(unknown)} others, such as {unknown[:3]}")
        twice = sorted({i for i in listed if listed.count(i) > 1}, key=str) if len(set(listed)) < len(listed) else []
        if twice:
            raise ValueError(f"{path}: the image {twice[0]} is listed twice; list each image once")
        return replace(self, image_ids=tuple(i for i in self.image_ids if i in set(listed)))

    def _named(self, entry: ImageId, path: Path) -> ImageId:
        """The id of an entry of a file of ids."""
        if isinstance(entry, str) or not isinstance(self.image_ids[0], str):
            return entry
        fitting = [name for name in self.image_ids if _number_in(name) == entry]
        if len(fitting) > 1:
            raise ValueError(f"{path}: {entry} may be any of {', '.join(map(str, fitting))}; list file names instead")
        return fitting[0] if fitting else entry

    def limited(self, limit: int | None, seed: int) -> "Data":
        """A seeded sample of `limit` images, sorted; all of them if there are fewer or `limit` is None."""
        if limit is None or limit >= len(self.image_ids):
            return self
        picked = np.random.default_rng(seed).choice(len(self.image_ids), size=limit, replace=False)
        return replace(self, image_ids=tuple(self.image_ids[i] for i in sorted(picked)))

    def first(self, n: int) -> "Data":
        """The first `n` of the selected images."""
        return replace(self, image_ids=self.image_ids[:n])


def _number_in(name: ImageId) -> int | None:
    """The number of an image that goes by its file name: COCO_val2014_000000310196.jpg is 310196."""
    digits = re.findall(r"\d+", Path(str(name)).stem)
    return int(digits[-1]) if digits else None


def read_ids(path: Path) -> list[ImageId]:
    """The image ids (numbers or file names) of a file, in its order; ValueError if it holds anything else."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if text.lstrip()[:1] not in ("[", "{"):
            entries: Any = [line.strip() for line in text.split("\n") if line.strip()]
            return [int(entry) if re.fullmatch(r"\d+", entry) else entry for entry in entries]
        entries = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"cannot read image ids from {path}; expected one a line, a JSON list, or a manifest.json: {error}"
        ) from error
    if isinstance(entries, dict):
        entries = entries.get("image_ids")
    if not isinstance(entries, list):
        raise ValueError(f"{path}: expected a list of image ids, or a manifest with image_ids")
    wrong = [entry for entry in entries if type(entry) not in (int, str)]
    if wrong:
        raise ValueError(f"{path}: an image id is a whole number or a file name, got {json.dumps(wrong[0])[:40]}")
    return entries


def _load_scene(kind: Kind, split: Split, image_id: ImageId) -> Sample:
    s = scene(kind, split, int(image_id))
    return Sample(image_id, Image.fromarray(draw(s)), s.categories)


def _erased_scene(kind: Kind, split: Split, image_id: ImageId, objects: Collection[str]) -> Image.Image:
    s = scene(kind, split, int(image_id))
    return Image.fromarray(draw(replace(s, things=tuple(t for t in s.things if t.category not in objects))))


def _scene_questions(kind: Kind, split: Split, image_ids: Sequence[ImageId]) -> tuple[Question, ...]:
    return tuple(
        Question(100 * int(i) + k, str(i), q.text, q.present)
        for i in image_ids
        for k, q in enumerate(scene_questions(kind, split, int(i), "adversarial"))
    )


def _load_file(images: dict[int, CocoImage], image_id: ImageId) -> Sample:
    found = images[int(image_id)]
    return Sample(image_id, read_image(found.path), found.truth)


def _load_named(folder: Path, image_id: ImageId) -> Sample:
    return Sample(image_id, read_image(folder / str(image_id)), frozenset())


def _load_item(items: Mapping[ImageId, Item], image_id: ImageId) -> Sample:
    item = items[image_id]
    return Sample(image_id, read_image(item.picture()), item.truth or frozenset())


def _item_questions(items: Mapping[ImageId, Item], image_ids: Sequence[ImageId]) -> tuple[Question, ...]:
    return tuple(
        Question(f"{i}-{k}", str(i), text, label)
        for i in image_ids
        for k, (text, label) in enumerate(items[i].questions)
    )


def _of_items(name: str, source: Source) -> Data:
    """A user's own pictures, sorted by id."""
    items = source.items
    ids = tuple(sorted(items, key=lambda i: (isinstance(i, str), i)))
    asked = any(item.questions for item in items.values())
    questions = partial(_item_questions, items) if asked else None
    return Data(name, ids, partial(_load_item, items), questions, source.files, source.has_truth)


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
        ask = partial(_scene_questions, kind, chosen)
        load, erased = partial(_load_scene, kind, chosen), partial(_erased_scene, kind, chosen)
        ids = tuple(range(EVALUATION_SCENES))
        return Data(name, ids, load, ask, erased=erased, tied={**PARTNER_OF, **ANCHOR_OF})
    if source in SOURCES and place:
        return _of_items(name, open_source(name, split, parser))
    if source == "coco" and place:
        folder = Path(place)
        images = dict(read_coco(folder, split, parser))
        names = (f"{kind}_{find_split(folder, split)}.json" for kind in ("instances", "captions"))
        files = {name: path for name in names if (path := folder / "annotations" / name).exists()}
        return Data(name, tuple(sorted(images)), partial(_load_file, images), files=files)
    known = [*(f"testbed:{kind}" for kind in KINDS), "coco:FOLDER", *(f"{kind}:..." for kind in SOURCES)]
    raise ValueError(f"unknown data {name!r}; expected one of {', '.join(known)}")


def open_questions(questions: Path, images: Path) -> Data:
    """The images that a POPE question file names, by file name, in the folder `images`; without true objects."""
    every = read_questions(questions)

    def about(image_ids: Sequence[ImageId]) -> tuple[Question, ...]:
        wanted = set(image_ids)
        return tuple(q for q in every if q.image in wanted)

    names = tuple(sorted({q.image for q in every}))
    return Data(questions.name, names, partial(_load_named, images), about, {"questions": questions}, has_truth=False)
