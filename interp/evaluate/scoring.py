"""Scoring files of captions and answers that any model wrote: CHAIR, POPE, OPOPE, AMBER, with intervals over images."""

import json
import os
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from interp.evaluate import chair, pope
from interp.evaluate.amber import (
    amber,
    amber_parser,
    counts,
    pooled_counts,
    pooled_rates,
    read_amber,
    read_associations,
    read_responses,
)
from interp.evaluate.answers import Rule, read_answer
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
    notes: tuple[str, ...] = ()
    """What a reader of the scores should know."""

    def as_json(self) -> dict[str, Any]:
        """One object: the scores, under `interval` their ends, and under `notes` what to know, if anything."""
        notes = {"notes": list(self.notes)} if self.notes else {}
        return self.values | {"interval": {k: [v.low, v.high] for k, v in self.intervals.items()}} | notes

    def __str__(self) -> str:
        lines = []
        for name, value in self.values.items():
            known = self.intervals.get(name)
            shown = f"{value:8.2f}" if isinstance(value, float) else f"{value:8d}"
            lines.append(f"{name:<14}{shown}" + (f"  [{known.low:.2f}, {known.high:.2f}]" if known else ""))
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def write_details(self, path: Path) -> None:
        """The records as JSONL, whole or not at all."""
        new = path.with_name(f".{path.name}.{os.getpid()}")
        new.write_text("".join(json.dumps(row) + "\n" for row in self.details), encoding="utf-8")
        os.replace(new, path)


def require_other(out: Path, inputs: Iterable[Path]) -> None:
    """ValueError if a file to write is one of the files read, or lies in a folder that is."""
    for path in inputs:
        inside = path.is_dir() and out.resolve().is_relative_to(path.resolve())
        if inside or out.resolve() == path.resolve() or (out.exists() and path.exists() and out.samefile(path)):
            raise ValueError(f"{out} would overwrite what is read from {path}; write the details elsewhere")


def _unheard(texts: Collection[str], named: Collection[Collection[Any]], kind: str) -> tuple[str, ...]:
    """Notes on texts that the parser heard nothing in: they look as good as texts without a wrong object."""
    silent = sum(not objects for objects in named)
    foreign = sum(_in_another_script(text) for text in texts)
    notes = []
    if silent:
        notes.append(f"{silent} of {len(texts)} {kind} name no object that the parser knows; they count as right")
    if foreign:
        notes.append(f"{foreign} of {len(texts)} {kind} are in another script; the parser reads English only")
    return tuple(notes)


def _in_another_script(text: str) -> bool:
    letters = [c for c in text if c.isalpha()]
    return 2 * sum("LATIN" not in unicodedata.name(c, "") for c in letters) > len(letters)


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
    notes = _unheard(told.values(), [score.mentions for score in scores.values()], "captions")
    return Scores(asdict(whole), from_table, details, notes)


def _pope_scores(rows: Sequence[dict[str, Any]], seed: int, rule: Rule = "reader") -> Scores:
    """Scores of answered questions, resampled by image."""
    whole = pope([row["said"] for row in rows], [row["label"] for row in rows], rule)
    images = sorted({row["image"] for row in rows})
    place = {image: i for i, image in enumerate(images)}
    sums = np.zeros((len(images), 6))
    for row in rows:
        sums[place[row["image"]]] += (*counted(row["said"], row["label"], rule), 1)
    found = intervals(sums, lambda totals, _: pope_rates(totals[..., :5], totals[..., 5]), seed=seed)
    notes = []
    if whole.missing:
        notes.append(f"{whole.missing} of {whole.n} questions have no answer, and count as answered wrongly")
    if whole.unparsed:
        meant = "yes" if rule == "script" else "answered wrongly"
        notes.append(f"{whole.unparsed} answers say neither yes nor no to a reader, and count as {meant}")
    if whole.rules_differ:
        notes.append(
            f"a reader and the customary script's rule read {whole.rules_differ} answers differently; counted by the "
            + ("script's rule" if rule == "script" else "reader's; --rule script counts by the script's")
        )
    return Scores(asdict(whole), found, list(rows), tuple(notes))


def score_pope(answers: Path, questions: Path, seed: int = 0, rule: Rule = "reader") -> Scores:
    """POPE of an answers file to a questions file, read by a rule (`interp.evaluate.answers`)."""
    asked = read_questions(questions)
    said = read_answers(answers, asked)
    rows = [asdict(q) | {"said": s} for q, s in zip(asked, said, strict=True)]
    for row, text in zip(rows, said, strict=True):
        row["yes"] = None if text is None else read_answer(text, rule)
    return _pope_scores(rows, seed, rule)


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
    scores = _pope_scores(rows, seed)
    asked_of = [told[image_id] for image_id in named]
    return replace(scores, notes=_unheard(asked_of, list(named.values()), "captions"))


def score_amber(
    responses: Path, annotations: Path, associations: Path | None = None, seed: int = 0, *, pooled: bool = False
) -> Scores:
    """AMBER's generative scores of a responses file (JSONL or a JSON list of `{"id", "response"}`).

    `pooled`: over all responses together, as the benchmark's script has them.
    """
    images = read_amber(annotations)
    others = read_associations(associations) if associations is not None else None
    parser = amber_parser(images, others)
    told = read_responses(responses)
    matched(told, images, responses)
    numbers = np.array([counts(text, images[i], parser) for i, text in told.items()], dtype=float)
    each = [asdict(amber(row[None])) for row in numbers]
    columns = [name for name in each[0] if name != "n"]
    per_image = np.array([[one[name] for name in columns] for one in each])
    found = intervals(per_image, lambda totals, n: {c: totals[..., i] / n for i, c in enumerate(columns)}, seed=seed)
    details = [{"id": i, "response": text, **one} for (i, text), one in zip(told.items(), each, strict=True)]
    notes = _unheard(told.values(), [range(int(row[0])) for row in numbers], "responses")
    if pooled:
        rows = [pooled_counts(text, images[i], parser) for i, text in told.items()]
        whole = np.array([(*row, row[1] > 0) for row in rows], dtype=float)
        found = intervals(whole, pooled_rates, seed=seed)
        values = {name: interval.value for name, interval in found.items()}
        return Scores(values | {"n": len(whole)}, found, details, notes)
    return Scores(asdict(amber(numbers)), found, details, notes)
