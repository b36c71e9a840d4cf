"""POPE end to end: yes/no questions put to a model with several methods, one record an answer, scored and compared.

An answer is read from its text; with `from_logits`, from which of "Yes" and "No" the model finds likelier as its first
token, after whatever a method does to the logits.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import LogitsProcessor

from interp.data import Data, ImageId, Sample, open_data, open_questions
from interp.evaluate import ObjectParser, pope
from interp.evaluate.answers import answer_tokens
from interp.evaluate.bootstrap import Interval, McNemar, clustered_mcnemar, differences, intervals
from interp.evaluate.files import Question
from interp.evaluate.pope import Pope, counted, rates
from interp.experiments.compared import BASELINE, ComparisonConfig, check_methods, described, least_rows
from interp.experiments.config import DataConfig
from interp.experiments.engine import Job, Run
from interp.experiments.records import AnswerRecord, FailureRecord, ItemId
from interp.experiments.report import aligned, cell
from interp.experiments.setup import Setup
from interp.folder import write_text
from interp.interventions import Method
from interp.models import LVLM
from interp.sources import SOURCES


@dataclass(frozen=True)
class PopeConfig(ComparisonConfig):
    """Settings of `interp study --task pope`; `limit` counts images, and questions are about the selected ones."""

    questions: str | None = None
    """POPE's questions as JSONL; the testbed's adversarial ones if None."""
    images: str | None = None
    """Folder of the images that the questions name."""
    from_logits: bool = False
    """Read answers from the logits of Yes and No instead of the text."""

    def __post_init__(self) -> None:
        super().__post_init__()
        default = DataConfig()
        if (self.questions is None) != (self.images is None):
            raise ValueError("questions of a file are about images of a folder: expected both --questions and --images")
        if self.questions is None and self.data.data.partition(":")[0] not in ("testbed", *SOURCES):
            raise ValueError(
                f"{self.data.data} has no questions of its own; expected --questions FILE and --images DIR"
            )
        if self.questions is not None and (self.data.data, self.data.split) != (default.data, default.split):
            raise ValueError("a file of questions brings its images (--images DIR); leave out --data and --split")

    def open(self) -> Data:
        """The images that can be asked about, with the questions."""
        if self.questions is not None:
            return open_questions(Path(self.questions), Path(str(self.images)))
        return open_data(self.data.data, self.data.split, ObjectParser.coco())


@dataclass(frozen=True)
class Asked:
    """A question with its image read."""

    question: Question
    image: Image.Image


class _FirstLogits(LogitsProcessor):
    """Keeps the scores of the first step of each prompt, as all methods have left them."""

    def __init__(self, n_prompt: int) -> None:
        self.n_prompt, self.found = n_prompt, list[Tensor]()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] == self.n_prompt:
            self.found.append(scores)
        return scores


def _first_tokens(model: LVLM) -> tuple[list[int], list[int]]:
    """The tokens with which yes and no may begin."""
    return answer_tokens(lambda word: model.tokenizer(word, add_special_tokens=False).input_ids, model.tokenizer.decode)


def _answers(model: LVLM, samples: Sequence[Asked], name: str, method: Any, from_logits: bool) -> list[AnswerRecord]:
    """One record a question."""
    inputs = model.inputs([s.image for s in samples], [s.question.text for s in samples])
    first = _FirstLogits(inputs.input_ids.shape[1])
    with method(model):
        limit = 1 if from_logits else 8
        texts = model.generate(inputs, max_new_tokens=limit, logits_processor=[first]).texts
    found = torch.cat(first.found)
    scores = found[:: len(found) // len(samples)].float()
    return [
        AnswerRecord(**vars(s.question), answer=text, yes=p if p is None else round(p, 6), method=name)
        for s, text, p in zip(samples, texts, _shares(model, scores, from_logits), strict=True)
    ]


def _shares(model: LVLM, scores: Tensor, needed: bool) -> Sequence[float | None]:
    """The probability of yes among yes and no, by row; None where the tokenizer does not tell them apart."""
    try:
        yes, no = (scores[:, ids].logsumexp(-1) for ids in _first_tokens(model))
    except ValueError:
        if needed:
            raise
        return [None] * len(scores)
    return torch.sigmoid(yes - no).tolist()


@dataclass(frozen=True)
class PopeSummary:
    """POPE by method, with 95 % intervals over images, differences from greedy, and a paired test of the answers.

    The test exchanges images whole, since answers about one picture hang together (`clustered_mcnemar`).
    """

    methods: dict[str, Pope]
    intervals: dict[str, dict[str, Interval]]
    versus_greedy: dict[str, dict[str, Interval]]
    changed: dict[str, McNemar]
    out: Path
    n_images: int
    empty: dict[str, int]
    failures: int

    def __str__(self) -> str:
        columns = ("accuracy", "precision", "recall", "f1", "yes_ratio")
        rows = [["method", *columns, "unparsed", "rules differ", "empty", "answers fixed/broken", "McNemar p"]]
        for name, found in self.methods.items():
            test = self.changed.get(name)
            paired = [f"{test.better}/{test.worse}", f"{test.p:.2g}"] if test else ["", ""]
            counts = [str(found.unparsed), str(found.rules_differ), str(self.empty[name])]
            rows.append([name, *(cell(self.intervals[name][c]) for c in columns), *counts, *paired])
        n = next(iter(self.methods.values())).n
        about = f"POPE, {n} questions about {self.n_images} images"
        lines = [f"{about}, with 95 % bootstrap intervals over images", *aligned(rows)]
        if self.failures:
            lines.append(f"{self.failures} answers failed; see failures.jsonl")
        return "\n".join([*lines, "", f"results: {self.out}"])

    def as_json(self) -> dict[str, Any]:
        """The content of `summary.json`."""
        found: dict[str, Any] = {}
        for name, score in self.methods.items():
            ends = {key: [value.low, value.high] for key, value in self.intervals[name].items()}
            found[name] = asdict(score) | {"empty": self.empty[name], "interval": ends}
        for name in self.changed:
            versus = {key: asdict(value) for key, value in self.versus_greedy[name].items()}
            found[name] |= {"versus_greedy": versus, "mcnemar": asdict(self.changed[name])}
        return found


def _summary(
    records: Sequence[AnswerRecord],
    names: Sequence[str],
    config: PopeConfig,
    out: Path,
    failures: Sequence[FailureRecord],
) -> PopeSummary:
    by = {name: {r.question_id: r for r in records if r.method == name} for name in names}
    common = sorted(set.intersection(*(set(found) for found in by.values())), key=str)
    if not common:
        raise ValueError(f"no question came through with every method; {out / 'failures.jsonl'} says why")

    def said(record: AnswerRecord) -> str | bool:
        return record.yes > 0.5 if config.from_logits and record.yes is not None else record.answer

    scores, tables, wrong, empty = {}, {}, {}, {}
    place = {image: i for i, image in enumerate(sorted({by[names[0]][i].image for i in common}))}
    images = np.array([place[by[names[0]][i].image] for i in common])
    for name in names:
        found = [by[name][i] for i in common]
        scores[name] = pope([said(r) for r in found], [r.label for r in found])
        table = np.zeros((len(place), 6))
        for r in found:
            table[place[r.image]] += (*counted(said(r), r.label), 1)
        tables[name] = table
        wrong[name] = np.array([not counted(said(r), r.label)[3] for r in found])
        empty[name] = sum(not r.answer for r in found)

    def measured(totals: np.ndarray, _: int) -> dict[str, np.ndarray]:
        return rates(totals[..., :5], totals[..., 5])

    others, seed = [name for name in names if name != BASELINE], config.data.seed
    return PopeSummary(
        scores,
        {name: intervals(table, measured, seed=seed) for name, table in tables.items()},
        {name: differences(tables[name], tables[BASELINE], measured, seed=seed) for name in others},
        {name: clustered_mcnemar(wrong[name], wrong[BASELINE], images) for name in others},
        out,
        len(place),
        empty,
        len(failures),
    )


def _read(asked: Mapping[ItemId, tuple[Question, ImageId]], load: Callable[[ImageId], Sample], item: ItemId) -> Asked:
    question, image_id = asked[item]
    return Asked(question, load(image_id).image)


def answer_job(setup: Setup, config: PopeConfig, methods: Mapping[str, Method]) -> Job[AnswerRecord]:
    """An answer to every question about the selected images with every method."""
    data = setup.data
    if data.questions is None:
        raise ValueError(f"{data.name} has no questions of its own; expected --questions FILE and --images DIR")
    named = {str(i): i for i in data.image_ids}
    asked = {q.question_id: (q, named[q.image]) for q in data.questions(data.image_ids)}

    def image_of(item: ItemId) -> ImageId:
        return asked[item][1]

    def work(name: str, samples: Sequence[Asked]) -> list[AnswerRecord]:
        return _answers(setup.model, samples, name, methods[name], config.from_logits)

    least = least_rows(methods)
    read, names = partial(_read, asked, data.load), list(methods)
    return Job("answers", AnswerRecord, list(asked), names, read, work, "question", least, image_of)


def run_pope(config: PopeConfig) -> PopeSummary | None:
    """Put the questions, or go on with a run that was interrupted; None in the other processes of a launch."""
    return ask(Setup.of(config, config.open()), config, config.compared)


def ask(setup: Setup, config: PopeConfig, methods: Mapping[str, Method]) -> PopeSummary | None:
    """The questions about a setup's images, with methods by name, of which the first is the baseline."""
    check_methods(setup.model, methods)
    if config.from_logits:
        _first_tokens(setup.model)  # refused before anything is written
    job = answer_job(setup, config, methods)
    job.check(config.run.batch_size)
    manifest = setup.manifest(
        "pope",
        config,
        methods=described(methods),
        from_logits=config.from_logits,
        question_ids=list(job.items),
    )
    out = setup.folder("pope-", config, manifest)
    with Run.opened(out, manifest, setup.shard) as run:
        records = run.made(job, config.run)
        if records is None:
            return None
        summary = _summary(records, list(methods), config, out, run.failures)
        write_text(out / "summary.json", json.dumps(summary.as_json(), indent=2) + "\n")
        return summary
