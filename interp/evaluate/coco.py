"""Ground truth in COCO format: which categories are in which image."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from interp.evaluate.objects import ObjectParser
from interp.evaluate.reading import read_json, require_fields, require_inside


@dataclass(frozen=True)
class CocoImage:
    """One image of a COCO split: its file and the categories in it."""

    path: Path
    truth: frozenset[str]


_ENTRIES: dict[str, dict[str, tuple[type, ...]]] = {
    "images": {"id": (int,), "file_name": (str,)},
    "categories": {"id": (int,), "name": (str,)},
    "annotations": {"image_id": (int,), "category_id": (int,)},
}
"""What each entry of a list has, in an instances file."""


def _read(path: Path, lists: Mapping[str, Mapping[str, tuple[type, ...]]]) -> dict[str, list[dict[str, Any]]]:
    """The lists of a COCO file, every entry with its fields."""
    expected = f"COCO annotations, an object with the lists {', '.join(lists)}"
    content = read_json(path, expected)
    for name, fields in lists.items():
        entries = content.get(name) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise ValueError(f"{path} is not a COCO annotation file: it has no list {name!r}; expected {expected}")
        for number, entry in enumerate(entries, 1):
            require_fields(entry, fields, f"{path}, {name}, entry {number}")
    return {name: content[name] for name in lists}


def _by_id(entries: Sequence[dict[str, Any]], path: Path, name: str) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for number, entry in enumerate(entries, 1):
        if entry["id"] in found:
            raise ValueError(
                f"{path}, {name}, entry {number}: id {entry['id']} stands there twice; keep one of the two"
            )
        found[entry["id"]] = entry
    return found


def find_split(folder: Path, split: str | None) -> str:
    """The split to use: the given one, or the only one that `folder/annotations` has instances of."""
    found = sorted(p.stem.removeprefix("instances_") for p in (folder / "annotations").glob("instances_*.json"))
    if split is None and len(found) == 1:
        return found[0]
    if split not in found:
        raise ValueError(
            f"expected {folder}/annotations/instances_{split or 'SPLIT'}.json; "
            + (f"the splits there are {', '.join(found)}: choose one with --split" if found else "there is none")
        )
    return split


def read_coco(folder: Path, split: str | None, parser: ObjectParser) -> Mapping[int, CocoImage]:
    """Images of `folder/SPLIT/`, by id, with their true objects.

    The truth is the categories of the instances, united with the objects that the reference captions name
    (Rohrbach et al. 2018, section 3), if `captions_SPLIT.json` is there.
    """
    split = find_split(folder, split)
    path = folder / "annotations" / f"instances_{split}.json"
    instances = _read(path, _ENTRIES)
    images, categories = (_by_id(instances[name], path, name) for name in ("images", "categories"))
    if not images:
        raise ValueError(f"{path} lists no image")
    unknown = sorted({c["name"] for c in categories.values()} - set(parser.categories))
    if unknown:
        raise ValueError(f"{path}: it has categories that are not among the parser's: {str(unknown)[:300]}")
    truth: dict[int, set[str]] = {image_id: set() for image_id in images}
    for number, annotation in enumerate(instances["annotations"], 1):
        place = f"{path}, annotations, entry {number}"
        category = _known(categories, annotation["category_id"], "category", place)
        truth[_known(images, annotation["image_id"], "image", place)["id"]].add(category["name"])
    told = folder / "annotations" / f"captions_{split}.json"
    if told.exists():
        captions = _read(told, {"annotations": {"image_id": (int,), "caption": (str,)}})["annotations"]
        for number, annotation in enumerate(captions, 1):
            place = f"{told}, annotations, entry {number}"
            image = _known(images, annotation["image_id"], "image", place)
            truth[image["id"]] |= parser.objects([annotation["caption"]])
    for number, image in enumerate(instances["images"], 1):
        require_inside(image["file_name"], f"{path}, images, entry {number}")
    return {i: CocoImage(folder / split / image["file_name"], frozenset(truth[i])) for i, image in images.items()}


def _known(entries: Mapping[int, dict[str, Any]], wanted: int, kind: str, place: str) -> dict[str, Any]:
    if wanted not in entries:
        raise ValueError(
            f"{place}: the {kind} {wanted} that it refers to is not in the instances file; the files of a split must "
            "belong together"
        )
    return entries[wanted]


def read_truth_cached(folder: Path, split: str | None, parser: ObjectParser) -> dict[int, frozenset[str]]:
    """The true objects of every image of a split; parsed once, then read from a JSON cache.

    The cache lies in `$XDG_CACHE_HOME/interp`; its name is a hash of the annotation files and the parser's table.
    """
    split = find_split(folder, split)
    digest = sha256(parser.signature.encode())
    for kind in ("instances", "captions"):
        path = folder / "annotations" / f"{kind}_{split}.json"
        digest.update(path.read_bytes() if path.is_file() else b"-")
    place = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "interp"
    cache = place / f"coco-{digest.hexdigest()[:16]}.json"
    known = _cached(cache)
    if known is not None:
        return known
    truth = {image_id: image.truth for image_id, image in read_coco(folder, split, parser).items()}
    try:
        place.mkdir(parents=True, exist_ok=True)
        new = cache.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps({i: sorted(names) for i, names in truth.items()}), encoding="utf-8")
        os.replace(new, cache)
    except OSError:
        return truth  # a read-only home costs time, not results
    return truth


def _cached(path: Path) -> dict[int, frozenset[str]] | None:
    """What the cache holds; None where there is none, or where it is not as it was written: it is made anew then."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {int(i): frozenset(map(str.lower, names)) for i, names in content.items()} or None
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return None
