"""What runs write, a record a line (JSONL): the records' fields, and the one place that writes and reads them.

A record names what it is of (`item`) and the method that made it.  Lines are flushed as they come.  A kill can only
tear the last line, which is dropped; anything else that is no record is an error that names file and line.
"""

import json
from abc import ABC, abstractmethod
from base64 import b64decode, b64encode
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

ItemId = int | str
Numbers = Annotated[list[Any], "numbers"]
"""An array as nested lists of numbers."""


class Record(ABC):
    """What the engine needs to know of a record: the method that made it, and what it is of."""

    method: str

    @property
    @abstractmethod
    def item(self) -> ItemId:
        """What the record is of: an image or a question."""


@dataclass(frozen=True)
class ImageRecord(Record):
    """A record of one image."""

    image_id: ItemId
    method: str

    @property
    def item(self) -> ItemId:
        """The image."""
        return self.image_id


@dataclass(frozen=True)
class MentionRecord:
    """An object that a caption names: category and words, characters `start` to `end`, its tokens, right or wrong."""

    object: str
    text: str
    hallucinated: bool
    start: int
    end: int
    token: int
    n_tokens: int


@dataclass(frozen=True)
class CaptionRecord(ImageRecord):
    """A caption with the objects it names, and what it cost (seconds and bytes are a batch's, shared out evenly).

    `tokens` are the ids that were written, `ends` the length of the text up to and with each of them.
     `heads`: the `[layer, head]` pairs the method chose, if it chooses.
    Where the caption was looked into: T-VHD and probability of each token, VHD `[layer, head]` at the first step,
    and the tokens from `start` to `stop` of each sentence.
    """

    caption: str
    mentions: tuple[MentionRecord, ...]
    truth: tuple[str, ...]
    n_tokens: int
    seconds: float
    kv_bytes: int
    tokens: Numbers
    heads: Numbers | None = None
    t_vhd: Numbers | None = None
    probability: Numbers | None = None
    vhd: Numbers | None = None
    sentences: tuple[tuple[int, int], ...] | None = None
    ends: Numbers | None = None


@dataclass(frozen=True)
class WordRecord(ImageRecord):
    """A mention of an object as a row of its own (`tokens.jsonl`): the `mention`-th of its caption.

    Where the caption was looked into: the sentence that it stands in, T-VHD and probability of its first token.
    """

    object: str
    text: str
    hallucinated: bool
    start: int
    end: int
    token: int
    n_tokens: int
    mention: int
    sentence: int | None = None
    t_vhd: float | None = None
    probability: float | None = None


@dataclass(frozen=True)
class AnswerRecord(Record):
    """An answer to a yes/no question; `yes` is the probability of yes against no at its first token."""

    question_id: ItemId
    image: str
    text: str
    label: bool
    answer: str
    yes: float | None
    method: str

    @property
    def item(self) -> ItemId:
        """The question."""
        return self.question_id


@dataclass(frozen=True)
class LikelihoodRecord(ImageRecord):
    """The log-likelihood (nats) under an edit of a caption of `n_tokens` tokens."""

    log_p: float
    n_tokens: int


@dataclass(frozen=True)
class EffectRecord:
    """What heads do for one object word: contributions (nats) `[stream, layer, head]` with the image and without.

    `direct` is what a head adds to the logit of the word's first token over the other objects', `writes_it` whether it
    adds most to this one, both `[layer, head]`; `blind` whether the text alone goes on to name the object; `begins_as`
    the objects whose names begin with that token.
    """

    object: str
    hallucinated: bool
    token: int
    blind: bool
    begins_as: tuple[str, ...]
    patched: Numbers
    direct: Numbers
    writes_it: Numbers
    exact: Numbers | None = None


@dataclass(frozen=True)
class HeadsRecord(ImageRecord):
    """An image's maps `[layer, head]` (`cosine`: before and after; `mean`: of head outputs), and its object words."""

    caption: str
    vhd: Numbers
    image_mass: Numbers
    cosine: Numbers
    mean: Numbers
    words: tuple[EffectRecord, ...]


@dataclass(frozen=True)
class SwapRecord:
    """An object that a caption names, with log p (nats) of its words under four readings: picture and text swapped.

    `picture` says what became of it: the objects that were erased, or the image that stood in its place; `text` which
    earlier object was renamed to which other one of the picture.  None where there was nothing to swap with, and then
    so are the values with that swap.  The two values of controls are with another thing of the picture erased, and
    another earlier object renamed, which should not matter.
    """

    object: str
    hallucinated: bool
    token: int
    kept: float
    picture: str | None = None
    text: tuple[str, str] | None = None
    picture_swapped: float | None = None
    text_swapped: float | None = None
    both_swapped: float | None = None
    picture_control: float | None = None
    text_control: float | None = None


@dataclass(frozen=True)
class CauseRecord(ImageRecord):
    """The swaps of each object word of a caption, and VHD `[layer, head]` at the first step and at correct words.

    `vhd_at_words` is the mean over the first tokens of correct object words; None where there are none.
    """

    caption: str
    words: tuple[SwapRecord, ...]
    vhd: Numbers
    vhd_at_words: Numbers | None = None


@dataclass(frozen=True)
class TokenSums:
    """A token of an image: how often, and sums of attention received, share of heads where it is a sink, weight `w`.

    Generated tokens are told apart by their text alone (no position).
    """

    text: str
    kind: str
    count: int
    received: float
    sink: float
    weight: float
    position: int | None = None


@dataclass(frozen=True, eq=False)
class AttentionRecord(ImageRecord):
    """Statistics of the attention over one image and its caption: arrays by name, and its tokens."""

    n_tokens: int
    arrays: dict[str, np.ndarray]
    tokens: tuple[TokenSums, ...]


@dataclass(frozen=True)
class FailureRecord(Record):
    """What went wrong with an image, or with a question about it."""

    image_id: ItemId
    method: str
    error: str
    question_id: ItemId | None = None

    @property
    def item(self) -> ItemId:
        """The question, or the image."""
        return self.image_id if self.question_id is None else self.question_id


R = TypeVar("R", bound=Record)


def to_json(value: Any) -> Any:
    """A record as JSON; fields that are None are left out."""
    if is_dataclass(value):
        named = ((f.name, getattr(value, f.name)) for f in fields(value))
        return {name: to_json(x) for name, x in named if x is not None}
    if isinstance(value, np.ndarray):
        content = b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"dtype": str(value.dtype), "shape": value.shape, "base64": content}
    if isinstance(value, dict):
        return {name: to_json(x) for name, x in value.items()}
    return [to_json(x) for x in value] if isinstance(value, tuple) else value


def from_json(kind: Any, value: Any) -> Any:
    """A value of a record's field from JSON; ValueError if it is of another type, or has fields that are unknown."""
    if get_origin(kind) is UnionType or (get_origin(kind) is not None and NoneType in get_args(kind)):
        kinds = get_args(kind)
        if value is None and NoneType in kinds:
            return None
        fitting = [k for k in kinds if type(value) is k] or [k for k in kinds if k is not NoneType]
        return from_json(fitting[0], value)
    if is_dataclass(kind) and isinstance(value, dict):
        return _dataclass_of(kind, value)
    if get_origin(kind) is Annotated:
        if isinstance(value, list) and np.asarray(value).dtype.kind in "if":  # ragged or mixed lists are neither
            return value
    elif get_origin(kind) is tuple and isinstance(value, list):
        inner = get_args(kind)
        if inner[-1] is ... or len(inner) == len(value):
            each = [inner[0]] * len(value) if inner[-1] is ... else inner
            return tuple(from_json(k, x) for k, x in zip(each, value, strict=True))
    elif kind is np.ndarray and isinstance(value, dict) and {"dtype", "shape", "base64"} == set(value):
        return np.frombuffer(b64decode(value["base64"], validate=True), value["dtype"]).reshape(value["shape"])
    elif get_origin(kind) is dict and isinstance(value, dict):
        return {name: from_json(get_args(kind)[1], x) for name, x in value.items()}
    elif kind is float and type(value) is int:
        return float(value)
    elif type(value) is kind:
        return value
    raise ValueError(f"expected {getattr(kind, '__name__', kind)}, got {json.dumps(value)[:60]}")


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _dataclass_of(kind: Any, value: dict[str, Any]) -> Any:
    known = {f.name: f.default is not MISSING for f in fields(kind)}
    unknown = [name for name in value if name not in known]
    lacking = [name for name, optional in known.items() if name not in value and not optional]
    if unknown or lacking:
        what = f"unknown fields {', '.join(unknown)}" if unknown else f"no {', '.join(lacking)}"
        raise ValueError(f"a {kind.__name__} with {what}")
    read = {}
    for name, x in value.items():
        try:
            read[name] = from_json(_hints(kind)[name], x)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name}: {error}") from error
    return kind(**read)


def _whole_lines(path: Path) -> list[bytes]:
    """The lines of a file that were written to their end."""
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1].split(b"\n")[:-1]


def read_records(path: Path, kind: type[R]) -> list[R]:
    """The records of a file that may still be written to, which is left as it is; none if there is no file.

    Raises ValueError with file and line if a line is no such record.
    """
    found = []
    for number, line in enumerate(_whole_lines(path), 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"expected an object, got {str(row)[:60]}")
            found.append(_dataclass_of(kind, row))
        except (ValueError, RecursionError) as error:
            what = "no JSON" if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) else str(error)
            raise ValueError(
                f"{path}, line {number}: not a record of this run ({what}). "
                "Remove the line and run again, and what it held is computed anew"
            ) from error
    return found


class RecordFile(Generic[R]):
    """An append-only file of records; a line that a kill cut short is dropped when the file is opened again."""

    def __init__(self, path: Path, kind: type[R]) -> None:
        self.path, self.kind = path, kind
        if path.exists():
            whole = sum(len(line) + 1 for line in _whole_lines(path))
            if whole < path.stat().st_size:
                with path.open("r+b") as file:
                    file.truncate(whole)

    def append(self, records: Iterable[R]) -> None:
        """Write records and hand them to the operating system at once."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(to_json(record)) + "\n" for record in records)
            file.flush()
