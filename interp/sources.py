"""A user's own pictures: a folder, a table of rows, or a data set of the `datasets` library, as items with ids.

    folder:DIR           the pictures of a folder; truth.csv, truth.jsonl or truth.parquet beside them, if there is one
    csv:FILE, jsonl:FILE, parquet:FILE, arrow:FILE     a row a picture, or a row a question about a picture
    hf:NAME[:SPLIT]      a data set by name, or a local folder that `datasets` reads

Columns are found by their usual names (`COLUMNS`) or named: `parquet:FILE?image=photo&truth=objects`.  A picture is
bytes, a path (relative to the table) or a file:// address; nothing is fetched but what `hf:` names.  `truth` lists
objects (a list, or a text parted by , ; or |), `captions` are reference captions whose objects count; `question` and
`answer` (yes or no) are asked of the picture.  Parquet, arrow and hf need the extra `data`.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qsl, unquote, urlparse

from interp.evaluate.objects import ObjectParser

COLUMNS: dict[str, tuple[str, ...]] = {
    "image": ("image", "image_path", "file_name", "file", "path"),
    "id": ("image_id", "id"),
    "truth": ("truth", "objects"),
    "captions": ("captions", "caption"),
    "question": ("question", "text"),
    "answer": ("answer", "label"),
}
"""What a table is asked for, and the names under which it is looked for."""
SOURCES = ("folder", "csv", "jsonl", "parquet", "arrow", "hf")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
ItemId = int | str


@dataclass(frozen=True)
class Item:
    """A picture, as a file or as the bytes of one, with what is known of it; `truth` is None where nothing is."""

    picture: Callable[[], Path | BytesIO]
    truth: frozenset[str] | None
    questions: tuple[tuple[str, bool], ...] = ()


@dataclass(frozen=True)
class Source:
    """Items by id, and the files that say what they are."""

    items: dict[ItemId, Item]
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def has_truth(self) -> bool:
        """Whether the objects of every picture are known."""
        return all(item.truth is not None for item in self.items.values())


@dataclass(frozen=True)
class _Table:
    """Rows of one kind or another: their columns, one column as a list, one cell alone."""

    name: str
    columns: Sequence[str]
    column: Callable[[str], list[Any]]
    cell: Callable[[str, int], Any]
    root: Path


def open_source(name: str, split: str | None, parser: ObjectParser) -> Source:
    """Open what `name` (see the module) names; `split` is that of `hf:NAME`.

    Raises ValueError that says what is missing: file, package, column, row.
    """
    head, _, query = name.partition("?")
    kind, _, place = head.partition(":")
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(set(options) - {*COLUMNS, "unknown"})
    if kind not in SOURCES or not place or unknown:
        raise ValueError(
            f"expected {', '.join(SOURCES)} with a place, and columns named like ?image=NAME of {', '.join(COLUMNS)}; "
            f"got {name!r}"
        )
    if kind != "hf" and split is not None:
        raise ValueError(f"{kind}: has no splits, got split {split!r}")
    if kind == "folder":
        return _folder(Path(place), options, parser)
    if kind == "hf":
        dataset, _, named = place.partition(":")
        return _items(_hub(dataset, named or split or "test"), options, parser)
    file = Path(place)
    return Source(_items(_read(file, kind), options, parser).items, {file.name: file})


def _folder(folder: Path, options: Mapping[str, str], parser: ObjectParser) -> Source:
    """The pictures of a folder, with the table beside them if there is one."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    pictures = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in PICTURES)
    if not pictures:
        raise ValueError(f"{folder} holds no pictures ({', '.join(PICTURES)})")
    tables = [folder / f"truth.{kind}" for kind in ("csv", "jsonl", "parquet") if (folder / f"truth.{kind}").is_file()]
    if len(tables) > 1:
        raise ValueError(f"{folder} holds {', '.join(t.name for t in tables)}; keep one of them")
    if not tables:
        return Source({name: Item(_at(folder / name), None) for name in pictures})
    table = _read(tables[0], tables[0].suffix[1:])
    if "id" not in options and not set(table.columns) & set(COLUMNS["id"]):
        options = {**options, "id": _column(table, "image", options) or ""}
    found = _items(table, options, parser).items
    named = {Path(str(item.picture())).name for item in found.values()}
    rest = [name for name in pictures if name not in named]
    if rest:
        raise ValueError(f"{tables[0]} says nothing of {len(rest)} pictures of the folder, such as {rest[0]}")
    return Source(found, {tables[0].name: tables[0]})


def _package(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError(f"reading this takes the package {name}: pip install 'lvlm-interp[data]'") from error


def _read(file: Path, kind: str) -> _Table:
    """Open a table; pictures inside it are read when they are needed."""
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    if kind in ("csv", "jsonl"):
        rows = list(_lines(file, kind))
        columns = list(dict.fromkeys(key for row in rows for key in row))
        return _Table(str(file), columns, lambda c: [r.get(c) for r in rows], lambda c, i: rows[i].get(c), file.parent)
    try:
        if kind == "parquet":
            table = _package("pyarrow.parquet").read_table(file, memory_map=True)
        else:
            arrow = _package("pyarrow")
            with arrow.memory_map(str(file)) as mapped:
                stream = mapped.read(6) != b"ARROW1"
                mapped.seek(0)
                table = (arrow.ipc.open_stream if stream else arrow.ipc.open_file)(mapped).read_all()
    except (OSError, _package("pyarrow").ArrowInvalid) as error:
        raise ValueError(f"{file} is no {kind} file: {error}") from error
    return _of_arrow(str(file), table, file.parent)


def _lines(file: Path, kind: str) -> Iterator[dict[str, Any]]:
    text = file.read_text(encoding="utf-8-sig")
    if kind == "csv":
        yield from csv.DictReader(text.splitlines())
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{file}, line {number}: expected a JSON object") from error
            if not isinstance(row, dict):
                raise ValueError(f"{file}, line {number}: expected a JSON object, got {line[:40]}")
            yield row


def _hub(name: str, split: str) -> _Table:
    """A data set of the `datasets` library; its pictures are left as they are stored."""
    datasets = _package("datasets")
    try:
        found = datasets.load_dataset(name, split=split)
    except Exception as error:  # of its builders, of files of any kind, of the network
        raise ValueError(f"datasets cannot load {name!r}, split {split!r}: {' '.join(str(error).split())}") from error
    stored = found.with_format("arrow")[:]  # as they are stored: nothing is decoded
    root = Path(name) if Path(name).is_dir() else Path()
    return _of_arrow(f"{name}:{split}", stored, root)


def _of_arrow(name: str, table: Any, root: Path) -> _Table:
    """A table of pyarrow."""
    return _Table(name, table.column_names, lambda c: table[c].to_pylist(), lambda c, i: table[c][i].as_py(), root)


def _column(table: _Table, what: str, options: Mapping[str, str]) -> str | None:
    """The name of a column in a table; None where there is none and none was named."""
    if what in options:
        if options[what] not in table.columns:
            raise ValueError(f"{table.name} has the columns {', '.join(table.columns)}, got {what}={options[what]!r}")
        return options[what]
    return next((name for name in COLUMNS[what] if name in table.columns), None)


def _items(table: _Table, options: Mapping[str, str], parser: ObjectParser) -> Source:
    """One item for each id; rows that share an id add their questions and objects."""
    names = {what: _column(table, what, options) for what in COLUMNS}
    image = names["image"]
    if image is None:
        raise ValueError(f"{table.name} has the columns {', '.join(table.columns)}: name that of the pictures, ?image=")
    if (names["question"] is None) != (names["answer"] is None):
        names["question"] = names["answer"] = None
    listed = {what: table.column(c) for what, c in names.items() if c is not None and what != "image"}
    ids = listed.get("id") or _own_ids(table, image)
    items: dict[ItemId, Item] = {}
    for row, own in enumerate(ids):
        where = f"{table.name}, row {row + 1}"
        if own is None or own == "":
            raise ValueError(f"{where} has no id")
        key = own if isinstance(own, int) and not isinstance(own, bool) else str(own)
        cells = {what: values[row] for what, values in listed.items()}
        truth = _truth(cells, parser, where, options.get("unknown") == "ignore")
        asked = (_question(cells, where),) if "question" in cells else ()
        before = items.get(key)
        if before is not None and not asked:
            raise ValueError(f"{where}: the picture {key} is there twice; give each an id (?id=COLUMN)")
        if before is not None:
            joined = truth if before.truth is None else before.truth | (truth or frozenset())
            items[key] = Item(before.picture, joined, before.questions + asked)
        else:
            items[key] = Item(_picture(table, image, row, where), truth, asked)
    if not items:
        raise ValueError(f"{table.name} has no rows")
    return Source(items)


def _own_ids(table: _Table, image: str) -> list[Any]:
    """Ids where no column has them: file names where pictures are files, else numbers of rows."""
    cells = table.column(image)
    if all(isinstance(cell, str) for cell in cells):
        return [Path(cell).name for cell in cells]
    return list(range(len(cells)))


def _truth(cells: Mapping[str, Any], parser: ObjectParser, where: str, lenient: bool) -> frozenset[str] | None:
    """The categories that a row names; None if it has no column that does."""
    if "truth" not in cells and "captions" not in cells:
        return None
    found: set[str] = set()
    named = cells.get("truth") or ()
    for entry in re.split(r"[,;|]", named) if isinstance(named, str) else named:
        objects = parser.objects([str(entry)])
        if not objects and str(entry).strip() and not lenient:
            raise ValueError(f"{where}: {str(entry).strip()!r} is no object that is known here (?unknown=ignore)")
        found |= objects
    captions = cells.get("captions") or ()
    return frozenset(found | parser.objects([captions] if isinstance(captions, str) else captions))


def _question(cells: Mapping[str, Any], where: str) -> tuple[str, bool]:
    answer = str(cells["answer"]).strip().lower()
    if answer not in ("yes", "no", "true", "false", "1", "0"):
        raise ValueError(f"{where}: expected the answer yes or no, got {cells['answer']!r}")
    return str(cells["question"]), answer in ("yes", "true", "1")


def _at(path: Path) -> Callable[[], Path]:
    return lambda: path


def _picture(table: _Table, column: str, row: int, where: str) -> Callable[[], Path | BytesIO]:
    """A picture, read when it is asked for: bytes, a path, a file:// address, or what `datasets` stores."""

    def read() -> Path | BytesIO:
        cell = table.cell(column, row)
        if isinstance(cell, Mapping):  # {"bytes": ..., "path": ...}
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, bytes):
            return BytesIO(cell)
        if not isinstance(cell, str) or not cell:
            raise ValueError(f"{where}: expected a picture as bytes or as a path, got {type(cell).__name__}")
        address = urlparse(cell)
        if address.scheme in ("http", "https", "ftp", "s3", "gs"):
            raise ValueError(f"{where}: {cell} is an address on the network, which is not fetched; store the files")
        return table.root / (unquote(address.path) if address.scheme == "file" else cell)

    return read
