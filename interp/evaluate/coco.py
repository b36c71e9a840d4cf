"""Ground truth in COCO format: which categories are in which image."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from interp.evaluate.objects import ObjectParser


@dataclass(frozen=True)
class CocoImage:
    """One image of a COCO split: its file and the categories in it."""

    path: Path
    truth: frozenset[str]


def _read(path: Path, key: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read COCO annotations from {path}: {error}") from error
    if not isinstance(content, dict) or key not in content:
        raise ValueError(f"{path} is not a COCO annotation file: expected a JSON object with {key!r}")
    return content


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
    try:
        return _truth(folder, split, parser)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"the annotations of {split} in {folder / 'annotations'} lack {error}: an image or category id that an "
            "annotation refers to, or a field of the COCO format; the files of a split must belong together"
        ) from error


def _truth(folder: Path, split: str, parser: ObjectParser) -> Mapping[int, CocoImage]:
    instances = _read(folder / "annotations" / f"instances_{split}.json", "annotations")
    names = {c["id"]: c["name"] for c in instances["categories"]}
    unknown = sorted(set(names.values()) - set(parser.categories))
    if unknown:
        raise ValueError(f"the instances of {split} have categories that are not among the parser's: {unknown}")
    truth: dict[int, set[str]] = {image["id"]: set() for image in instances["images"]}
    for annotation in instances["annotations"]:
        truth[annotation["image_id"]].add(names[annotation["category_id"]])
    captions = folder / "annotations" / f"captions_{split}.json"
    if captions.exists():
        for annotation in _read(captions, "annotations")["annotations"]:
            truth[annotation["image_id"]] |= parser.objects([annotation["caption"]])
    return {
        image["id"]: CocoImage(folder / split / image["file_name"], frozenset(truth[image["id"]]))
        for image in instances["images"]
    }


def read_truth_cached(folder: Path, split: str | None, parser: ObjectParser) -> dict[int, frozenset[str]]:
    """The true objects of every image of a split; parsed once, then read from a JSON cache.

    The cache lies in `$XDG_CACHE_HOME/interp`; its name is a hash of the annotation files and the parser's table.
    """
    split = find_split(folder, split)
    digest = sha256(parser.signature.encode())
    for kind in ("instances", "captions"):
        path = folder / "annotations" / f"{kind}_{split}.json"
        digest.update(path.read_bytes() if path.exists() else b"-")
    place = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "interp"
    cache = place / f"coco-{digest.hexdigest()[:16]}.json"
    if cache.exists():
        return {int(i): frozenset(names) for i, names in json.loads(cache.read_text(encoding="utf-8")).items()}
    truth = {image_id: image.truth for image_id, image in read_coco(folder, split, parser).items()}
    try:
        place.mkdir(parents=True, exist_ok=True)
        new = cache.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps({i: sorted(names) for i, names in truth.items()}), encoding="utf-8")
        os.replace(new, cache)
    except OSError:
        return truth  # a read-only home costs time, not results
    return truth
