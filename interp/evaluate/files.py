"""Reading the files that people score; an error names file, line and remedy."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.evaluate.objects import ObjectParser
from interp.evaluate.reading import image_number, read_json, read_lines, require_inside

_ASKS = re.compile(r"\bis there (?:an? )?", re.IGNORECASE)
_ENDS = re.compile(r" in (?:the|this) (?:image|picture|photo)", re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """A yes/no question about an image; `label` is True for yes."""

    question_id: int | str
    image: str
    text: str
    label: bool

    @property
    def image_id(self) -> int:
        """The number that COCO writes into file names: COCO_val2014_000000310196.jpg is 310196."""
        digits = re.findall(r"\d+", Path(self.image).stem)
        if not digits:
            raise ValueError(f"question {self.question_id}: the file name {self.image!r} holds no image id")
        return int(digits[-1][-18:])


def _once(seen: dict[Any, int], key: Any, path: Path, number: int, name: str) -> None:
    if key in seen:
        raise ValueError(
            f"{path}, line {number}: {name} {key} stood on line {seen[key]} already; "
            "files of two runs were joined, or one was written twice: keep one of the lines"
        )
    seen[key] = number


def read_captions(path: Path, allow_empty: bool = False) -> dict[int, str]:
    """Captions by image id from JSONL `{"image_id": int, "caption": str}`; duplicates and empty ones are errors."""
    captions: dict[int, str] = {}
    seen: dict[Any, int] = {}
    for number, row in read_lines(path, {"image_id": (int,), "caption": (str,)}):
        _once(seen, row["image_id"], path, number, "image")
        if not row["caption"].strip() and not allow_empty:
            raise ValueError(
                f"{path}, line {number}: an empty caption, which counts as one without hallucination; "
                "caption the image again, or say that empty ones are meant (allow_empty)"
            )
        captions[row["image_id"]] = row["caption"]
    return captions


def read_truth(path: Path, parser: ObjectParser) -> dict[int, frozenset[str]]:
    """Ground truth from JSON `{"image_id": ["object", ...]}`; objects are the parser's categories."""
    expected = 'one JSON object, {"image_id": ["object", ...]}'
    content = read_json(path, expected, names_once=True)
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: expected {expected}")
    truth: dict[int, frozenset[str]] = {}
    for key, objects in content.items():
        number = image_number(key)
        if number is None or not isinstance(objects, list):
            raise ValueError(f"{path}: expected an image id and a list of objects, got {key!r}: {str(objects)[:60]}")
        if number in truth:
            raise ValueError(f"{path}: image {number} stands there twice (once as {key!r}); keep one of the two")
        unknown = [o for o in objects if o not in parser.categories]
        if unknown:
            raise ValueError(
                f"{path}: image {key} has {str(unknown)[:200]}, which are not among the {len(parser.categories)} "
                "categories; use their names, or pass the synonyms file that belongs to this ground truth"
            )
        truth[number] = frozenset(objects)
    return truth


def matched(captions: Mapping[int, str], truth: Mapping[int, Any], source: Path) -> None:
    """ValueError if a caption's image has no ground truth: it must not pass for an image without objects."""
    unknown = sorted(set(captions) - set(truth))
    if unknown:
        some = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        raise ValueError(
            f"{source}: {len(unknown)} of {len(captions)} captions are of images without ground truth ({some}); "
            "the annotations are of another split or year, or the ids are not COCO's"
        )


def read_questions(path: Path) -> list[Question]:
    """POPE's questions from JSONL `{"question_id", "image", "text", "label": "yes"|"no"}`."""
    questions, seen = [], dict[Any, int]()
    fields: dict[str, tuple[type, ...]] = {"question_id": (int, str), "image": (str,), "text": (str,), "label": (str,)}
    for number, row in read_lines(path, fields):
        _once(seen, row["question_id"], path, number, "question")
        label = row["label"].strip().lower()
        if label not in ("yes", "no"):
            raise ValueError(f"{path}, line {number}: a label is yes or no, got {row['label']!r}")
        require_inside(row["image"], f"{path}, line {number}")
        questions.append(Question(row["question_id"], row["image"], row["text"], label == "yes"))
    return questions


def read_answers(path: Path, questions: Sequence[Question]) -> list[str | None]:
    """The answer to each question, None where there is none, from JSONL with `question_id` and `answer` (or `text`)."""
    answers: dict[Any, str] = {}
    seen: dict[Any, int] = {}
    known = {q.question_id for q in questions}
    for number, row in read_lines(path, {"question_id": (int, str)}):
        _once(seen, row["question_id"], path, number, "question")
        if row["question_id"] not in known:
            raise ValueError(
                f"{path}, line {number}: question {row['question_id']!r} is not among the {len(questions)} questions; "
                "pass the questions file that these answers are to"
            )
        answer = row.get("answer", row.get("text"))
        if not isinstance(answer, str):
            raise ValueError(f"{path}, line {number}: expected an 'answer' (or 'text') that is a string")
        answers[row["question_id"]] = answer
    return [answers.get(q.question_id) for q in questions]


def asked_object(question: Question, parser: ObjectParser) -> str:
    """The category a question asks about; ValueError if it names none or several."""
    named = {m.category for m in parser.mentions(_asked_about(question.text))}
    if len(named) != 1:
        raise ValueError(
            f"question {question.question_id} ({question.text[:200]!r}) names {sorted(named) or 'no object'}; "
            "expected one category, as in: Is there a snowboard in the image?"
        )
    return named.pop()


def _asked_about(text: str) -> str:
    """What stands between "is there a" and "in the image", in one line; the whole text if there is no such question."""
    for line in text.split("\n"):
        begins = _ASKS.search(line)
        ends = begins and _ENDS.search(line, begins.end() + 1)
        if begins and ends:
            return line[begins.end() : ends.start()]
    return text
