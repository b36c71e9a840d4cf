"""What the claims are measured on: one model, one selection of pictures, and experiments that are run once and kept.

Claims ask for captions by a method, attention, traces or texts; what is there already, in memory or in the folder of an
interrupted run, is not made again.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interp.evaluate.bootstrap import Interval
from interp.experiments.attention import SurveyConfig, survey
from interp.experiments.captions import StudyConfig, caption_job
from interp.experiments.compared import BASELINE
from interp.experiments.config import ExperimentConfig
from interp.experiments.engine import Run
from interp.experiments.operating import Above, methods_of, points_of
from interp.experiments.records import AttentionRecord, CaptionRecord, read_records
from interp.experiments.report import summarised, versus
from interp.experiments.setup import Setup
from interp.experiments.words import sentence_records, word_records
from interp.interventions import Method, parse_method
from interp.metrics.vhd import default_top_k, token_divergence
from interp.models import LVLM, Inputs
from interp.trace.attention import attention_statistics
from interp.trace.divergence import token_vhd
from interp.trace.sinks import Inside, inside, sequences


@dataclass(frozen=True)
class ScoredWords:
    """Object words, or sentences that name objects: image, whether wrong, place, and T-VHD for each k."""

    image: np.ndarray
    hallucinated: np.ndarray
    place: np.ndarray
    t_vhd: dict[int, np.ndarray]
    n_images: int


@dataclass(frozen=True)
class Texts:
    """Sequences of one kind: which tokens are sinks `[row, layer, head, token]`, and what tokens look like inside."""

    sinks: torch.Tensor
    received: torch.Tensor
    recall: torch.Tensor
    inside: Inside


class Bench:
    """The experiments that claims share; `texts` is how many sequences a kind of text has."""

    def __init__(self, setup: Setup, config: ExperimentConfig, run: Run, *, max_new_tokens: int, texts: int) -> None:
        self.setup, self.config, self.run = setup, config, run
        self.max_new_tokens, self.n_texts = max_new_tokens, texts
        self._captions: dict[str, list[CaptionRecord]] = {}
        self._texts: dict[str, Texts] = {}

    @property
    def model(self) -> LVLM:
        """The model."""
        return self.setup.model

    @property
    def seed(self) -> int:
        """The seed of samples and intervals."""
        return self.config.data.seed

    @property
    def study(self) -> StudyConfig:
        """The settings that captions are written with."""
        return StudyConfig(self.config.model, self.config.data, self.config.run, max_new_tokens=self.max_new_tokens)

    def captions(self, name: str = BASELINE, method: Method | None = None) -> list[CaptionRecord]:
        """The captions of a method by name, in the order of the images."""
        if name not in self._captions:
            opened = parse_method(name) if method is None else method
            opened.check(self.model)
            job = replace(
                caption_job(self.setup, self.study, {name: opened}),
                stem=f"captions-{re.sub(r'[^a-z0-9.=-]+', '-', name)}",
            )
            found = self.run.made(job, self.config.run)
            assert found is not None, "claims run in one process"
            self._captions[name] = found
        return self._captions[name]

    def minus(self, ours: str, theirs: str = BASELINE) -> dict[str, Interval]:
        """Each rate of one method minus another's on the same images, paired."""
        return versus([*self.captions(theirs), *self.captions(ours)], ours, theirs, self.seed)

    def above_curve(self, name: str) -> Above | None:
        """How far CHAIR_I of a method is below greedy's at the same recall, greedy stopping sooner or later."""
        for point, method in methods_of("stopping", self.model, ()).items():
            self.captions(point, method)
        names = [BASELINE, name, *points_of("stopping")]
        records = [r for n in names for r in self.captions(n)]
        options: Any = {"top_k": default_top_k(self.model.n_heads), "seed": self.seed, "knob": "stopping"}
        curve = summarised(records, [BASELINE, name], Path(self.run.out), **options).curve
        assert curve is not None
        return curve.above[name]

    def inputs(self, size: int | None = None) -> Iterator[Inputs]:
        """The prompts of all images, in batches."""
        ids, step = self.setup.data.image_ids, size or self.config.run.batch_size
        for start in range(0, len(ids), step):
            samples = [self.setup.data.load(i) for i in ids[start : start + step]]
            yield self.model.inputs([s.image for s in samples], self.config.data.prompt)

    @cached_property
    def scored(self) -> tuple[ScoredWords, ScoredWords]:
        """The object words of greedy captions and the sentences they stand in, with T-VHD for several k."""
        records, heads = self.captions(), self.model.n_heads
        ks = sorted({1, 2, default_top_k(heads), max(1, heads // 2), heads})
        by_k: dict[int, list[list[float]]] = {k: [] for k in ks}
        start = 0
        for inputs in self.inputs():
            mine = records[start : start + len(inputs.input_ids)]
            start += len(mine)
            ids = [torch.tensor(r.tokens or [int(inputs.input_ids[i, -1])]) for i, r in enumerate(mine)]
            for record, trace in zip(mine, token_vhd(self.model, inputs, ids), strict=True):
                for k in ks:
                    by_k[k].append(token_divergence(trace.vhd, k).tolist()[: len(record.tokens)])
        number = {r.image_id: i for i, r in enumerate(records)}
        words = {k: [w for i, r in enumerate(records) for w in self._with(r, by_k[k][i])] for k in ks}
        spans = {k: sentence_records([replace(r, t_vhd=by_k[k][i]) for i, r in enumerate(records)]) for k in ks}
        first, sentence = words[ks[0]], spans[ks[0]]
        order = [sum(s.image_id == t.image_id for t in sentence[:i]) for i, s in enumerate(sentence)]
        found = []
        for rows, places, of in (
            (first, [w.token for w in first], words),
            (sentence, order, spans),
        ):
            images, wrong = [number[r.image_id] for r in rows], [r.hallucinated for r in rows]
            scores = {k: np.array([r.t_vhd for r in of[k]], dtype=float) for k in ks}
            found.append(ScoredWords(np.array(images), np.array(wrong), np.array(places), scores, len(records)))
        return found[0], found[1]

    @staticmethod
    def _with(record: CaptionRecord, t_vhd: list[float]) -> list[Any]:
        return word_records([replace(record, t_vhd=t_vhd, probability=[0.0] * len(t_vhd))])

    @cached_property
    def attention(self) -> list[AttentionRecord]:
        """The attention over each image and its greedy caption."""
        out = self.run.out / "attention"
        few = replace(self.config.run, out=str(out), batch_size=min(10, self.config.run.batch_size))
        config = SurveyConfig(self.config.model, self.config.data, few, max_new_tokens=self.max_new_tokens)
        survey(self.setup, config)
        return read_records(out / "attention.jsonl", AttentionRecord)

    def text(self, kind: str) -> Texts:
        """Sequences of 64 tokens of one kind (`interp.trace.sinks.sequences`), measured."""
        if kind not in self._texts:
            inputs = sequences(self.model, kind, self.n_texts, 64, self.seed)
            stats = attention_statistics(self.model, inputs)
            found = Texts(stats.sinks(0.3), stats.received, stats.recall, inside(self.model, inputs))
            self._texts[kind] = found
        return self._texts[kind]
