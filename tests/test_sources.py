"""A user's own pictures: folders, tables, data sets of the `datasets` library."""

import json
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from interp.data import open_data
from interp.evaluate.files import Question
from interp.evaluate.objects import ObjectParser

PARSER = ObjectParser.coco()
ROWS = [
    {"file": "a.png", "objects": "fork; kitten", "question": "Is there a fork?", "answer": "yes"},
    {"file": "b.png", "objects": "", "question": "Is there a cat?", "answer": "no"},
]
needs_data = pytest.mark.skipif(
    not (find_spec("datasets") and find_spec("pyarrow")), reason="the extra `data` is not installed"
)


@pytest.fixture
def folder(tmp_path) -> Path:
    for i, name in enumerate("ab"):
        Image.new("RGB", (8, 8), (100 * i, 0, 0)).save(tmp_path / f"{name}.png")
    return tmp_path


def look(name: str, split: str | None = None) -> Any:
    return open_data(name, split, PARSER)


def asked(data: Any, ids: list[Any]) -> list[tuple[str, str, bool]]:
    return [(q.image, q.text, q.label) for q in data.questions(ids)]


def _first(name: str) -> Any:
    data = look(name)
    return data.load(data.image_ids[0])


def same(data: Any, ids: tuple[Any, ...] = ("a.png", "b.png")) -> None:
    """Whether data holds the two pictures with their objects."""
    assert data.image_ids == ids
    assert data.has_truth
    samples = [data.load(i) for i in ids]
    assert [s.image.getpixel((0, 0)) for s in samples] == [(0, 0, 0), (100, 0, 0)]
    assert [s.truth for s in samples] == [frozenset({"fork", "cat"}), frozenset()]


def test_a_folder_of_pictures(folder):
    data = look(f"folder:{folder}")
    assert data.image_ids == ("a.png", "b.png")
    assert not data.has_truth
    assert data.load("b.png").image.getpixel((0, 0)) == (100, 0, 0)
    (folder / "truth.csv").write_text("file,objects\na.png,fork;kitten\nb.png,\n")
    same(look(f"folder:{folder}"))
    (folder / "truth.csv").write_text("file,objects\na.png,fork\n")
    with pytest.raises(ValueError, match=r"says nothing of 1 pictures of the folder, such as b\.png"):
        look(f"folder:{folder}")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_tables_of_paths_and_questions(folder, kind):
    file = folder / f"rows.{kind}"
    if kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        file.write_text("\n".join([",".join(ROWS[0]), *(",".join(row.values()) for row in ROWS)]))
    data = look(f"{kind}:{file}")
    same(data)
    assert data.questions(["a.png"]) == (Question("a.png-0", "a.png", "Is there a fork?", True),)
    assert data.questions(["b.png"]) == (Question("b.png-0", "b.png", "Is there a cat?", False),)


def test_columns_are_named_and_rows_of_one_picture_joined(folder):
    rows = [
        {"n": 7, "photo": (folder / "a.png").as_uri(), "seen": ["fork"], "q": "A fork?", "a": True},
        {"n": 7, "photo": (folder / "a.png").as_uri(), "seen": ["kitten"], "q": "A cow?", "a": False},
    ]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = look(f"jsonl:{folder}/t.jsonl?image=photo&id=n&truth=seen&question=q&answer=a")
    assert data.image_ids == (7,)
    assert data.load(7).truth == frozenset({"fork", "cat"})
    assert data.questions([7]) == (Question("7-0", "7", "A fork?", True), Question("7-1", "7", "A cow?", False))
    captions = folder / "c.jsonl"
    captions.write_text(json.dumps({"image": "a.png", "captions": ["A cat by a fork.", "Nice"]}) + "\n")
    assert look(f"jsonl:{captions}").load("a.png").truth == frozenset({"fork", "cat"})


@needs_data
@pytest.mark.filterwarnings("ignore:Cannot (locate|pickle)")  # of dill, about pyarrow
def test_parquet_arrow_and_the_datasets_library(folder):
    arrow: Any = import_module("pyarrow")
    rows = [row | {"file": {"bytes": (folder / row["file"]).read_bytes(), "path": None}} for row in ROWS]
    table = arrow.Table.from_pylist([row | {"file": (folder / row["file"]).read_bytes()} for row in ROWS])
    import_module("pyarrow.parquet").write_table(table, folder / "t.parquet")
    same(look(f"parquet:{folder}/t.parquet"), (0, 1))
    with arrow.OSFile(str(folder / "t.arrow"), "wb") as sink, arrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    same(look(f"arrow:{folder}/t.arrow"), (0, 1))
    (folder / "set").mkdir()  # as the library stores pictures
    stored = arrow.Table.from_pylist(rows)
    import_module("pyarrow.parquet").write_table(stored, folder / "set" / "test-00000-of-00001.parquet")
    same(look(f"hf:{folder}/set"), (0, 1))
    same(look(f"hf:{folder}/set:test"), (0, 1))
    with pytest.raises(ValueError, match="datasets cannot load"):
        look(f"hf:{folder}/set:nowhere")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "http://x.org/a.png", "truth": "fork"}, "is not fetched"),
        ({"image": "nowhere.png", "truth": "fork"}, "cannot read the image"),
        ({"image": "a.png", "truth": "forq"}, "'forq' is no object that is known"),
        ({"image": "a.png", "question": "?", "answer": "maybe"}, "answer yes or no, got 'maybe'"),
        ({"photo": "a.png"}, "name that of the pictures"),
        ({"image": 3, "id": 3}, "as bytes or as a path, got int"),
        ({"image": "a.png", "id": None}, "row 1 has no id"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(folder, row, message):
    (folder / "t.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=message):
        _first(f"jsonl:{folder}/t.jsonl")


def test_places_that_are_not_there(folder, monkeypatch):
    for name, message in (
        (f"folder:{folder}/x", "there is no folder"),
        (f"csv:{folder}/x.csv", "there is no file"),
        ("folder:", "unknown data"),
        (f"csv:{folder}/x.csv?picture=a", "columns named like"),
        (f"folder:{folder / 'a.png'}", "there is no folder"),
    ):
        with pytest.raises(ValueError, match=message):
            look(name)
    with pytest.raises(ValueError, match="has no splits"):
        look(f"folder:{folder}", "test")
    (folder / "t.parquet").write_bytes(BytesIO(b"nothing").getvalue())
    monkeypatch.setattr("interp.sources.import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    with pytest.raises(ValueError, match=r"pip install 'lvlm-interp\[data\]'"):
        look(f"parquet:{folder}/t.parquet")
