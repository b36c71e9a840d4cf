"""POPE end to end: yes/no questions put to a model with several methods, one record an answer, scored and compared.

An answer is read from its text; with `from_logits`, from which of "Yes" and "No" the model finds likelier as its first
token, after whatever a method does to the logits.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import LogitsProcessor

from interp.data import open_data
from interp.evaluate import ObjectParser, pope
from interp.evaluate.answers import answer_tokens
from interp.evaluate.bootstrap import Interval, McNemar, differences, intervals, mcnemar
from interp.evaluate.files import Question, read_questions
from interp.evaluate.pope import Pope, counted, rates
from interp.experiments.captions import BASELINE, StudyConfig
from interp.experiments.engine import Run, Shard, in_order
from interp.experiments.records import Manifest, Records, device_name
from interp.experiments.report import aligned, cell
from interp.interventions import Method
from interp.models import LVLM
from interp.pictures import read_image


@dataclass(frozen=True)
class PopeConfig(StudyConfig):
    """Settings of `interp study --task pope`: those of a study, and the questions; `limit` counts images."""

    questions: str | None = None
    """POPE's questions as JSONL; the testbed's adversarial ones if None."""
    images: str | None = None
    """Folder of the images that the questions name."""
    from_logits: bool = False
    """Read answers from the logits of Yes and No instead of the text."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.questions is None) != (self.images is None):
            raise ValueError("questions of a file are about images of a folder: expected both --questions and --images")
        if self.questions is None and not self.data.startswith("testbed:"):
            raise ValueError(f"{self.data} has no questions of its own; expected --questions FILE and --images DIR")


@dataclass(frozen=True)
class Asked:
    """A question with its image read."""

    question: Question
    image: Image.Image


def _questions(config: PopeConfig) -> tuple[dict[int | str, Question], Any]:
    """The questions by id, of `limit` images, and a function that reads one with its image."""
    if config.questions is None:
        data = open_data(config.data, config.split, ObjectParser.coco()).limited(config.limit, config.seed)
        assert data.questions is not None
        asked: dict[int | str, Question] = {
            100 * image_id + k: Question(100 * image_id + k, str(image_id), text, label)
            for image_id in data.image_ids
            for k, (text, label) in enumerate(data.questions(image_id))
        }
        return asked, lambda i: Asked(asked[i], data.load(int(asked[i].image)).image)
    every = read_questions(Path(config.questions))
    images = sorted({q.image for q in every})
    if config.limit is not None and config.limit < len(images):
        images = sorted(np.random.default_rng(config.seed).choice(images, config.limit, replace=False).tolist())
    chosen = {q.question_id: q for q in every if q.image in set(images)}
    folder = Path(str(config.images))
    return chosen, lambda i: Asked(chosen[i], read_image(folder / chosen[i].image))


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


def _answers(model: LVLM, samples: Sequence[Asked], method: Any, config: PopeConfig) -> list[dict[str, Any]]:
    """One record a question."""
    inputs = model.inputs([s.image for s in samples], [s.question.text for s in samples])
    first = _FirstLogits(inputs.input_ids.shape[1])
    with method(model):
        limit = 1 if config.from_logits else 8
        texts = model.generate(inputs, max_new_tokens=limit, logits_processor=[first]).texts
    found = torch.cat(first.found)
    scores = found[:: len(found) // len(samples)].float()
    return [
        asdict(s.question) | {"answer": text, "yes": p if p is None else round(p, 6)}
        for s, text, p in zip(samples, texts, _shares(model, scores, config), strict=True)
    ]


def _shares(model: LVLM, scores: Tensor, config: PopeConfig) -> Sequence[float | None]:
    """The probability of yes among yes and no, by row; None where the tokenizer does not tell them apart."""
    try:
        yes, no = (scores[:, ids].logsumexp(-1) for ids in _first_tokens(model))
    except ValueError:
        if config.from_logits:
            raise
        return [None] * len(scores)
    return torch.sigmoid(yes - no).tolist()


@dataclass(frozen=True)
class PopeSummary:
    """POPE by method, with 95 % intervals over images, differences from greedy, and a paired test of the answers."""

    methods: dict[str, Pope]
    intervals: dict[str, dict[str, Interval]]
    versus_greedy: dict[str, dict[str, Interval]]
    changed: dict[str, McNemar]
    out: Path
    failures: int

    def __str__(self) -> str:
        columns = ("accuracy", "precision", "recall", "f1", "yes_ratio")
        rows = [["method", *columns, "unparsed", "rules differ", "answers fixed/broken", "McNemar p"]]
        for name, found in self.methods.items():
            test = self.changed.get(name)
            paired = [f"{test.better}/{test.worse}", f"{test.p:.2g}"] if test else ["", ""]
            rows.append(
                [
                    name,
                    *(cell(self.intervals[name][c]) for c in columns),
                    str(found.unparsed),
                    str(found.rules_differ),
                    *paired,
                ]
            )
        n = next(iter(self.methods.values())).n
        lines = [f"POPE, {n} questions, with 95 % bootstrap intervals over images", *aligned(rows)]
        if self.failures:
            lines.append(f"{self.failures} answers failed; see failures.jsonl")
        return "\n".join([*lines, "", f"results: {self.out}"])


def _summary(rows: Sequence[dict[str, Any]], names: Sequence[str], config: PopeConfig, out: Path) -> PopeSummary:
    by = {name: {r["question_id"]: r for r in rows if r["method"] == name} for name in names}
    common = sorted(set.intersection(*(set(found) for found in by.values())), key=str)
    if not common:
        raise ValueError(f"no question came through with every method; {out / 'failures.jsonl'} says why")

    def said(row: dict[str, Any]) -> str | bool:
        return row["yes"] > 0.5 if config.from_logits else row["answer"]

    scores, tables, wrong = {}, {}, {}
    place = {image: i for i, image in enumerate(sorted({by[names[0]][i]["image"] for i in common}))}
    for name in names:
        found = [by[name][i] for i in common]
        scores[name] = pope([said(r) for r in found], [r["label"] for r in found])
        table = np.zeros((len(place), 6))
        for r in found:
            table[place[r["image"]]] += (*counted(said(r), r["label"]), 1)
        tables[name] = table
        wrong[name] = np.array([not counted(said(r), r["label"])[3] for r in found])

    def measured(totals: np.ndarray, _: int) -> dict[str, np.ndarray]:
        return rates(totals[..., :5], totals[..., 5])

    others = [name for name in names if name != BASELINE]
    return PopeSummary(
        scores,
        {name: intervals(table, measured, seed=config.seed) for name, table in tables.items()},
        {name: differences(tables[name], tables[BASELINE], measured, seed=config.seed) for name in others},
        {name: mcnemar(wrong[name], wrong[BASELINE]) for name in others},
        out,
        len(Records(out / "failures.jsonl").rows),
    )


def run_pope(config: PopeConfig, more: Mapping[str, Method] | None = None) -> PopeSummary | None:
    """Put the questions, or go on with a run that was interrupted; None in the other processes of a launch.

    `more` are methods, by name, beside those of the configuration.
    """
    shard = Shard.current(config.device)
    questions, read = _questions(config)
    model = config.load(shard)
    if config.from_logits:
        _first_tokens(model)  # refused before anything is written
    methods = config.parsed_methods | dict(more or {})
    for method in methods.values():
        method.check(model)
    settings = {k: v for k, v in vars(config).items() if k not in ("out", "device", "workers", "device_map", "prompt")}
    manifest = Manifest.of(
        **settings,
        weights=model.fingerprint,
        question_ids=list(questions),
        device_name=device_name(model.device),
        settings={name: repr(method) for name, method in methods.items()},
    )
    out = Path(config.out or Path("runs") / f"pope-{Path(config.model).name}-{manifest.digest}")

    def work(name: str, samples: Sequence[Asked]) -> list[dict[str, Any]]:
        return [row | {"method": name} for row in _answers(model, samples, methods[name], config)]

    with Run.opened(out, manifest, shard, "answers", "question_id") as run:
        options = {"batch_size": config.batch_size, "workers": config.workers, "unit": "question"}
        run.work_through(list(questions), methods, partial(read), work, **options)
        rows = run.joined(in_order(list(questions), methods))
        if rows is None:
            return None
        summary = _summary(rows, list(methods), config, out)
        found = {
            name: asdict(score) | {"interval": {k: [v.low, v.high] for k, v in summary.intervals[name].items()}}
            for name, score in summary.methods.items()
        }
        for name in summary.changed:
            versus = {k: asdict(v) for k, v in summary.versus_greedy[name].items()}
            found[name] |= {"versus_greedy": versus, "mcnemar": asdict(summary.changed[name])}
        (out / "summary.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        return summary
