"""Text and JSON files of any origin, read whole; an error names file, place and remedy."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any


def read_text(path: Path) -> str:
    """A UTF-8 file, with or without a byte order mark; ValueError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"cannot read {path}: byte {error.start} is no UTF-8; save it as UTF-8, or check that it is a text file"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"cannot read {path}: {reason}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _TwiceError(next(name for name in names if names.count(name) > 1))
    return found


class _TwiceError(ValueError):
    """A name that stands twice in one JSON object."""


def parsed(text: str, place: str, names_once: bool = False) -> Any:
    """What a JSON text holds; `place` says in errors where it stands, `names_once` refuses names twice in an object."""
    try:
        return json.loads(text, object_pairs_hook=_once if names_once else None)
    except _TwiceError as error:
        raise ValueError(f"{place}: {str(error)!r} stands there twice; keep one of the two") from error
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text else ""
        raise ValueError(f"{place}: no JSON from {line}column {error.colno} on") from error
    except RecursionError as error:
        raise ValueError(f"{place}: JSON nested too deep to be read") from error
    except ValueError as error:  # a number of more than 4,300 digits
        raise ValueError(f"{place}: JSON with a number that is too long") from error


def read_json(path: Path, expected: str, names_once: bool = False) -> Any:
    """The content of a JSON file; `expected` says in errors what should be there."""
    text = read_text(path)
    try:
        return parsed(text, str(path), names_once)
    except ValueError as error:
        raise ValueError(f"{error}; expected {expected}") from error


def read_lines(path: Path, fields: Mapping[str, tuple[type, ...]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file with their line numbers, from 1; each must have the fields, of these types."""
    found = 0
    for number, line in enumerate(read_text(path).split("\n"), 1):  # splitlines would cut at U+2028 inside a text
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = parsed(line, place)
        except ValueError as error:
            raise ValueError(
                f"{error}; expected one object a line. "
                "Remove the line (the last one of an interrupted run may be torn) or write it again"
            ) from error
        require_fields(row, fields, place)
        found += 1
        yield number, row
    if not found:
        raise ValueError(f"{path} is empty; expected one JSON object a line with {', '.join(fields)}")


def require_fields(row: Any, fields: Mapping[str, tuple[type, ...]], place: str) -> None:
    """ValueError if a JSON value is no object with these fields, of these types; true and false are no numbers."""
    for name, kinds in fields.items():
        value = row.get(name) if isinstance(row, dict) else None
        if not isinstance(value, kinds) or isinstance(value, bool):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"{place}: expected an object with {name!r} ({wanted}), got {json.dumps(row)[:80]}")


def require_inside(name: str, place: str) -> None:
    """ValueError if the name of a file leads out of the folder that it is looked for in."""
    for kind in (PurePosixPath, PureWindowsPath):
        path = kind(name)
        if path.anchor or ".." in path.parts or not path.parts or "\0" in name:
            raise ValueError(f"{place}: the file name {name!r} leads out of its folder; expected a name inside it")


def image_number(text: Any) -> int | None:
    """An image id: a whole number, or one in digits; None if it is neither."""
    if isinstance(text, str):
        return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None
    return text if isinstance(text, int) and not isinstance(text, bool) else None
