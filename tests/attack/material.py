"""What is attacked: small whole files, and the ways to damage them."""

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import load_file, save_file

from interp.testbed import WEIGHTS
from interp.testbed.draw import draw
from interp.testbed.world import scene

Damage = Callable[[Path], object]

BYTES: dict[str, Damage] = {
    "empty": lambda p: p.write_bytes(b""),
    "half": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "last byte off": lambda p: p.write_bytes(p.read_bytes().rstrip()[:-1]),
    "null": lambda p: p.write_bytes(b"null"),
    "a list": lambda p: p.write_bytes(b"[]"),
    "a list of nulls": lambda p: p.write_bytes(b"[null, null]"),
    "an object": lambda p: p.write_bytes(b"{}"),
    "a text": lambda p: p.write_bytes(b'"text"'),
    "a number": lambda p: p.write_bytes(b"3"),
    "a long number": lambda p: p.write_bytes(b"9" * 5000),
    "nested deep": lambda p: p.write_bytes(b"[" * 200_000),
    "objects nested deep": lambda p: p.write_bytes(b'{"a":' * 100_000),
    "bytes": lambda p: p.write_bytes(bytes(range(256))),
    "UTF-16": lambda p: p.write_bytes(p.read_bytes().decode("utf-8", "replace").encode("utf-16")),
    "zeros": lambda p: p.write_bytes(b"\0" * 100),
    "removed": lambda p: p.unlink(),
    "a folder": lambda p: (p.unlink(), p.mkdir()),
}
"""Ways to damage any file."""


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def lines_damaged(path: Path, kind: str) -> None:
    """Damage a JSONL file in the middle."""
    lines = path.read_text(encoding="utf-8").splitlines()
    middle = len(lines) // 2
    put = {"torn": lines[middle][: len(lines[middle]) // 2], "null line": "null", "list line": "[1]", "text line": "x",
           "foreign": '{"a": 1}', "doubled": lines[middle] + "\n" + lines[middle]}  # fmt: skip
    lines[middle] = put[kind]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


LINES = ("torn", "null line", "list line", "text line", "foreign", "doubled")


def mutations(content: Any) -> Iterator[tuple[str, Any]]:
    """The content with one value of another type at a time, or one that is missing: every one of them is wrong."""
    for way in _ways(content, ()):
        old = _at(content, way)
        for value in (None, True, -1.5, "text", [], {}, [None], [[]]):
            if type(value) is not type(old) and not (isinstance(old, list) and value in ([None], [[]])):
                yield f"{'/'.join(map(str, way))} = {value!r}", _put(content, way, value)
        if way and isinstance(way[-1], str):
            yield f"without {'/'.join(map(str, way))}", _put(content, way, ...)


def _ways(content: Any, way: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    yield way
    pairs = (
        content.items() if isinstance(content, dict) else enumerate(content[:1]) if isinstance(content, list) else ()
    )
    for key, value in pairs:
        yield from _ways(value, (*way, key))


def _at(content: Any, way: tuple[Any, ...]) -> Any:
    for key in way:
        content = content[key]
    return content


def _put(content: Any, way: tuple[Any, ...], value: Any) -> Any:
    if not way:
        return value
    whole = copy.deepcopy(content)
    holder = _at(whole, way[:-1])
    if value is ...:
        del holder[way[-1]]
    else:
        holder[way[-1]] = value
    return whole


CAPTIONS = [{"image_id": i, "caption": f"A dog and a fork, number {i}."} for i in (1, 2, 3)]
TRUTH = {"1": ["dog"], "2": ["fork"], "3": []}
QUESTIONS = [
    {"question_id": i, "image": f"{i}.png", "text": "Is there a dog in the image?", "label": "yes" if i % 2 else "no"}
    for i in (1, 2, 3)
]
ANSWERS = [{"question_id": i, "answer": "Yes."} for i in (1, 2, 3)]
AMBER = [{"id": i, "type": "generative", "truth": ["dog"], "hallu": ["cat"]} for i in (1, 2)]
RELATION = {"dog": ["puppy"]}
RESPONSES = [{"id": i, "response": "A puppy."} for i in (1, 2)]
INSTANCES = {
    "images": [{"id": i, "file_name": f"{i}.png"} for i in (1, 2, 3)],
    "annotations": [{"image_id": 1, "category_id": 18}],
    "categories": [{"id": 18, "name": "dog"}],
}
REFERENCES = {"annotations": [{"image_id": 2, "caption": "A fork."}]}


def files(folder: Path) -> dict[str, Path]:
    """Every small whole file, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    notes = folder / "coco" / "annotations"
    (folder / "coco" / "val").mkdir(parents=True)
    notes.mkdir()
    found = {
        "captions": jsonl(folder / "captions.jsonl", CAPTIONS),
        "questions": jsonl(folder / "questions.json", QUESTIONS),
        "answers": jsonl(folder / "answers.jsonl", ANSWERS),
    }
    whole = {"truth": TRUTH, "amber": AMBER, "relation": RELATION, "responses": RESPONSES}
    for name, content in whole.items():
        found[name] = folder / f"{name}.json"
        found[name].write_text(json.dumps(content), encoding="utf-8")
    for name, content in (("instances", INSTANCES), ("references", REFERENCES)):
        found[name] = notes / f"{'instances' if name == 'instances' else 'captions'}_val.json"
        found[name].write_text(json.dumps(content), encoding="utf-8")
    for i in (1, 2, 3):
        picture(folder / "coco" / "val" / f"{i}.png", i)
    return found


def picture(path: Path, number: int = 0) -> Path:
    Image.fromarray(draw(scene("broken", "test", number))).save(path)
    return path


def model_folder(folder: Path) -> Path:
    """A copy of the bundled model's folder."""
    shutil.copytree(WEIGHTS / "testbed", folder)
    return folder


def weights_changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the tensors of a model's folder."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
