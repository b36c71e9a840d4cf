"""Commands that score files which any model wrote."""

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from interp.evaluate.answers import Rule
from interp.evaluate.scoring import Scores, require_other, score_amber, score_chair, score_opope, score_pope


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """How scores are shown."""

    json: bool = False
    """Print one JSON object: the scores (rates in percent) and their 95 % intervals over images."""
    details: str | None = None
    """File for a record of each caption or question, as JSONL."""
    seed: int = 0
    """Seed of the bootstrap."""

    def show(self, scores: Scores) -> None:
        """Print and write."""
        print(json.dumps(scores.as_json()) if self.json else scores)
        if self.details is not None:
            scores.write_details(Path(self.details))

    def keep(self, *inputs: str | None) -> None:
        """ValueError, before anything is scored, if the records would overwrite one of the inputs."""
        if self.details is not None:
            require_other(Path(self.details), [Path(name) for name in inputs if name is not None])


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


@dataclass(frozen=True, kw_only=True)
class Chair(_Shown):
    """CHAIR of captions against COCO annotations or a ground-truth file."""

    captions: tyro.conf.Positional[str]
    """JSONL, {"image_id": int, "caption": str} a line."""
    coco: str | None = None
    """Folder with annotations/instances_SPLIT.json and captions_SPLIT.json."""
    split: str | None = None
    """Which split of the folder, if it has several."""
    truth: str | None = None
    """Ground truth instead of COCO: JSON, {"image_id": ["object", ...]}."""
    synonyms: str | None = None
    """The customary synonyms file, if not the bundled table."""
    allow_empty: bool = False
    """Whether empty captions are meant."""

    def __call__(self) -> None:
        """Score."""
        self.keep(self.captions, self.coco, self.truth, self.synonyms)
        where = {"coco": _path(self.coco), "truth": _path(self.truth), "synonyms": _path(self.synonyms)}
        options = {"split": self.split, "allow_empty": self.allow_empty, "seed": self.seed}
        self.show(score_chair(Path(self.captions), **where, **options))


@dataclass(frozen=True, kw_only=True)
class Pope(_Shown):
    """POPE of answers to questions; several files of each are scored one by one and averaged."""

    answers: tyro.conf.Positional[tuple[str, ...]]
    """JSONL, {"question_id", "answer"} a line."""
    questions: tuple[str, ...]
    """JSONL, {"question_id", "image", "text", "label"} a line; as many files as of answers."""
    rule: Rule = "reader"
    """How answers are read: as a reader would, or by the rule of POPE's customary script."""

    def __call__(self) -> None:
        """Score."""
        self.keep(*self.answers, *self.questions)
        if not self.answers or len(self.answers) != len(self.questions):
            raise ValueError(
                "expected at least one file of answers, and by --questions a questions file for each file of answers, "
                f"got {len(self.answers)} and {len(self.questions)}"
            )
        found = [
            score_pope(Path(answers), Path(questions), self.seed, self.rule)
            for answers, questions in zip(self.answers, self.questions, strict=True)
        ]
        if len(found) == 1:
            self.show(found[0])
            return
        mean = {name: sum(s.values[name] for s in found) / len(found) for name in found[0].values}
        counts = {name: sum(s.values[name] for s in found) for name in ("unparsed", "rules_differ", "missing", "n")}
        if self.json:
            print(
                json.dumps(dict(zip(self.answers, (s.as_json() for s in found), strict=True)) | {"mean": mean | counts})
            )
        else:
            for name, scores in zip(self.answers, found, strict=True):
                print(f"{name}\n{scores}\n")
            print(f"mean of {len(found)} files\n{Scores(mean | counts, {}, [])}")
        if self.details is not None:
            Scores({}, {}, [row for s in found for row in s.details]).write_details(Path(self.details))


@dataclass(frozen=True, kw_only=True)
class Opope(_Shown):
    """OPOPE: POPE's questions put to captions, objects found by the CHAIR parser."""

    captions: tyro.conf.Positional[str]
    """JSONL, {"image_id": int, "caption": str} a line."""
    questions: str
    """POPE's questions."""
    synonyms: str | None = None
    """The customary synonyms file, if not the bundled table."""

    def __call__(self) -> None:
        """Score."""
        self.keep(self.captions, self.questions, self.synonyms)
        self.show(score_opope(Path(self.captions), Path(self.questions), _path(self.synonyms), self.seed))


@dataclass(frozen=True, kw_only=True)
class Amber(_Shown):
    """AMBER's generative scores."""

    responses: tyro.conf.Positional[str]
    """JSONL or a JSON list, {"id": int, "response": str}."""
    annotations: str
    """AMBER's annotations.json."""
    associations: str | None = None
    """AMBER's relation.json: a word, and the words that count as it."""
    pooled: bool = False
    """Over all responses together, as the benchmark's script counts and publishes; else means over responses."""

    def __call__(self) -> None:
        """Score."""
        self.keep(self.responses, self.annotations, self.associations)
        others = _path(self.associations)
        self.show(score_amber(Path(self.responses), Path(self.annotations), others, self.seed, pooled=self.pooled))
