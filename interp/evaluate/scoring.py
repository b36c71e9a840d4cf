"""Scoring files of captions and answers that any model wrote: CHAIR, POPE, OPOPE, AMBER, with intervals over images."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from interp.evaluate import chair, pope
from interp.evaluate.amber import amber, amber_parser, counts, read_amber
from interp.evaluate.bootstrap import Interval, intervals
from interp.evaluate.chair import CaptionScore, score_caption, table
from interp.evaluate.chair import rates as chair_rates
from interp.evaluate.coco import read_truth_cached
from interp.evaluate.files import asked_object, matched, read_answers, read_captions, read_questions, read_truth
from interp.evaluate.objects import ObjectParser
from interp.evaluate.pope import counted
from interp.evaluate.pope import rates as pope_rates


@dataclass(frozen=True)
class Scores:
    """Scores by name, their 95 % bootstrap intervals over images, and a record for each caption or question."""

    values: dict[str, float]
    intervals: dict[str, Interval]
    details: list[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """One object: the scores, and under `interval` their ends."""
        return self.values | {"interval": {k: [v.low, v.high] for k, v in self.intervals.items()}}

    def __str__(self) -> str:
        lines = []
        for name, value in self.values.items():
            known = self.intervals.get(name)
            shown = f"{value:8.2f}" if isinstance(value, float) else f"{value:8d}"
            lines.append(f"{name:<14}{shown}" + (f"  [{known.low:.2f}, {known.high:.2f}]" if known else ""))
        return "\n".join(lines)

    def write_details(self, path: Path) -> None:
        """The records as JSONL."""
        path.write_text("".join(json.dumps(row) + "\n" for row in self.details), encoding="utf-8")


def _detail(image_id: int, caption: str, score: CaptionScore) -> dict[str, Any]:
    """A caption with its objects: which are there, which are not, which are missing."""
    return {
        "image_id": image_id,
        "caption": caption,
        "hallucinated": [m.category for m, bad in zip(score.mentions, score.hallucinated, strict=True) if bad],
        "correct": [m.category for m, bad in zip(score.mentions, score.hallucinated, strict=True) if not bad],
        "missed": sorted(score.truth - score.recalled),
        "length": score.length,
    }


def score_chair(
    captions: Path,
    *,
    coco: Path | None = None,
    split: str | None = None,
    truth: Path | None = None,
    synonyms: Path | None = None,
    allow_empty: bool = False,
    seed: int = 0,
) -> Scores:
    """CHAIR of a captions file against COCO annotations or a ground-truth file."""
    if (coco is None) == (truth is None):
        raise ValueError("expected the ground truth once: --coco DIR (instances and captions), or --truth FILE.json")
    parser = ObjectParser.coco(synonyms)
    told = read_captions(captions, allow_empty)
    there = read_truth(truth, parser) if truth is not None else read_truth_cached(Path(str(coco)), split, parser)
    matched(told, there, captions)
    scores = {image_id: score_caption(text, there[image_id], parser) for image_id, text in told.items()}
    whole = chair(list(scores.values()))
    from_table = intervals(table(list(scores.values())), chair_rates, seed=seed)
    details = [_detail(i, told[i], score) for i, score in scores.items()]
    return Scores(asdict(whole), from_table, details)


def _pope_scores(rows: Sequence[dict[str, Any]], seed: int) -> Scores:
    """Scores of answered questions, resampled by image."""
    whole = pope([row["said"] for row in rows], [row["label"] for row in rows])
    images = sorted({row["image"] for row in rows})
    place = {image: i for i, image in enumerate(images)}
    sums = np.zeros((len(images), 6))
    for row in rows:
        sums[place[row["image"]]] += (*counted(row["said"], row["label"]), 1)
    found = intervals(sums, lambda totals, _: pope_rates(totals[..., :5], totals[..., 5]), seed=seed)
    return Scores(asdict(whole), found, list(rows))


def score_pope(answers: Path, questions: Path, seed: int = 0) -> Scores:
    """POPE of an answers file to a questions file."""
    asked = read_questions(questions)
    said = read_answers(answers, asked)
    return _pope_scores([asdict(q) | {"said": s} for q, s in zip(asked, said, strict=True)], seed)


def score_opope(captions: Path, questions: Path, synonyms: Path | None = None, seed: int = 0) -> Scores:
    """OPOPE: the questions put to captions; every question's image needs a caption."""
    parser = ObjectParser.coco(synonyms)
    told = read_captions(captions, allow_empty=True)
    asked = read_questions(questions)
    missing = sorted({q.image_id for q in asked} - set(told))
    if missing:
        raise ValueError(
            f"{captions}: no caption for {len(missing)} images that {questions} asks about, such as {missing[0]}; "
            "caption these images, or pass the questions about the images that were captioned"
        )
    named = {image_id: parser.objects([told[image_id]]) for image_id in {q.image_id for q in asked}}
    rows = [asdict(q) | {"said": asked_object(q, parser) in named[q.image_id]} for q in asked]
    return _pope_scores(rows, seed)


def score_amber(responses: Path, annotations: Path, associations: Path | None = None, seed: int = 0) -> Scores:
    """AMBER's generative scores of a responses file (JSONL or a JSON list of `{"id", "response"}`)."""
    images = read_amber(annotations)
    others = json.loads(associations.read_text(encoding="utf-8")) if associations is not None else None
    parser = amber_parser(images, others)
    told = read_responses(responses)
    matched(told, images, responses)
    numbers = np.array([counts(text, images[i], parser) for i, text in told.items()], dtype=float)
    each = [asdict(amber(row[None])) for row in numbers]
    columns = [name for name in each[0] if name != "n"]
    per_image = np.array([[one[name] for name in columns] for one in each])
    found = intervals(per_image, lambda totals, n: {c: totals[..., i] / n for i, c in enumerate(columns)}, seed=seed)
    details = [{"id": i, "response": text, **one} for (i, text), one in zip(told.items(), each, strict=True)]
    return Scores(asdict(amber(numbers)), found, details)


def read_responses(path: Path) -> dict[int, str]:
    """AMBER's responses by id."""
    try:
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(x) for x in text.splitlines() if x]
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read responses from {path}: {error}") from error
    found: dict[int, str] = {}
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not isinstance(row.get("id"), int) or not isinstance(row.get("response"), str):
            raise ValueError(
                f"{path}, item {number}: expected id (a number) and response (a text), got {str(row)[:80]}"
            )
        if row["id"] in found:
            raise ValueError(f"{path}, item {number}: id {row['id']} stands there twice; keep one of them")
        found[row["id"]] = row["response"]
    return found
