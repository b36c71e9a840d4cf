"""`interp cause`: whether the object words of a model's captions follow the picture or the text before them.

A design of two factors for each object that a greedy caption names, at its first mention.  The *picture* is kept or
swapped: drawn anew without the object and what habit ties it to, where the data can draw (the testbed), else another
picture of the selection that has neither the object nor the one renamed in the text.  The *text so far* is kept or
swapped: the earlier object most related to this one (tied by habit; else the one that most often comes with it in the
selection's pictures) is renamed to another object of the picture.  All four are read teacher-forced: log p of the
word's tokens.  What they say: `interp.experiments.cause_report`.  As a control for each swap an irrelevant one is read:
another thing erased from the picture (where the data can draw), another earlier object renamed.

Beside it the first gate for a test of VHR: whether VHD at the first step, by which heads are chosen, ranks heads as VHD
at object words does.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL.Image import Image
from torch import Tensor

from interp.attribution.probe import Reading, log_p_of_words
from interp.data import Data, Sample
from interp.evaluate.alignment import token_ends, tokens_of
from interp.evaluate.objects import ObjectParser
from interp.experiments.captions import mention_records
from interp.experiments.cause_report import CauseReport, write_report
from interp.experiments.compared import BASELINE
from interp.experiments.config import HUNDRED, TENS, DataConfig, ExperimentConfig, RunConfig, at_least
from interp.experiments.engine import Job, Run
from interp.experiments.records import CauseRecord, ItemId, MentionRecord, SwapRecord
from interp.experiments.setup import Setup
from interp.models import LVLM
from interp.trace.divergence import TokenTrace, token_vhd


@dataclass(frozen=True)
class CauseConfig(ExperimentConfig):
    """Settings of `interp cause`."""

    data: DataConfig = HUNDRED
    run: RunConfig = TENS
    max_new_tokens: int = 128
    """Length cap of a caption, in tokens."""

    def __post_init__(self) -> None:
        at_least(1, max_new_tokens=self.max_new_tokens)


@dataclass(frozen=True)
class Swaps:
    """What pictures and texts of a selection can be swapped with; `truth` has the objects of each readable picture."""

    data: Data
    truth: Mapping[ItemId, frozenset[str]]
    seed: int = 0

    @classmethod
    def of(cls, data: Data, seed: int) -> "Swaps":
        """Read what is in each picture; one that cannot be read stands in for none, and the run tells of it."""
        truth = {}
        for i in data.image_ids:
            with suppress(ValueError, OSError):
                truth[i] = data.load(i).truth
        return cls(data, truth, seed)

    def comes_with(self, word: str, other: str) -> float:
        """How often `word` is in the pictures that `other` is in; 1 beyond that where habit ties them."""
        with_other = [word in objects for objects in self.truth.values() if other in objects]
        return float(np.mean(with_other or [0.0])) + (self.data.tied.get(word) == other)

    def renamed(self, word: str, earlier: Sequence[str], truth: frozenset[str]) -> tuple[str, str] | None:
        """The earlier object most related to `word`, and the object of the picture that takes its name's place.

        That one is least related to `word`, and not named yet if there is such a one.  None without either.
        """
        named = [e for e in dict.fromkeys(reversed(earlier)) if e != word]
        if not named:
            return None
        old = max(named, key=lambda e: self.comes_with(word, e))  # the latest, among equals
        free = sorted(truth - {word, old, self.data.tied.get(word)})
        if not free:
            return None
        return old, min(free, key=lambda new: (new in named, self.comes_with(word, new)))

    def picture(self, image_id: ItemId, word: str, old: str | None) -> tuple[str, Image] | None:
        """The picture in place of this one, and what it is; None if every other one has the object."""
        evidence = sorted({word, self.data.tied.get(word)} & self.truth[image_id])
        if evidence and self.data.erased is not None:
            return f"without {' and '.join(evidence)}", self.data.erased(image_id, evidence)
        others = [i for i, objects in self.truth.items() if word not in objects and i != image_id]
        others = [i for i in others if old not in self.truth[i]] or others
        if not others:
            return None
        rng = np.random.default_rng([self.seed, list(self.truth).index(image_id), *word.encode()])
        chosen = others[int(rng.integers(len(others)))]
        return f"image {chosen}", self.data.load(chosen).image

    def irrelevant(
        self, image_id: ItemId, word: str, earlier: Sequence[str], names: tuple[str, str] | None
    ) -> tuple[str | None, tuple[str, str] | None]:
        """A thing of the picture to erase, and an earlier object to rename, that have least to do with `word`.

        Neither is an object of the two swaps; the renamed one gets the name that the swap of the text gives.  None
        where there is no such object, or the data cannot draw.
        """
        taken = {word, self.data.tied.get(word), *(names or ())}
        things = sorted(self.truth[image_id] - taken) if self.data.erased is not None else []
        said = [e for e in dict.fromkeys(earlier) if e not in taken]

        def tie(other: str) -> float:
            return self.comes_with(word, other)

        erased = min(things, key=tie) if things else None
        return erased, (min(said, key=tie), names[1]) if said and names is not None else None


@dataclass(frozen=True)
class _Asked:
    """An object word, its four readings by name and two controls; those that cannot be had are left out."""

    mention: MentionRecord
    picture: str | None
    text: tuple[str, str] | None
    readings: dict[str, Reading]


def _renamed_tokens(
    model: LVLM, parser: ObjectParser, prompt: str, text: str, mention: MentionRecord, names: tuple[str, str]
) -> tuple[Int[Tensor, " token"], int]:
    """The tokens of a caption up to and with a mention, an earlier object renamed; how many are the mention's."""
    told = parser.renamed(text[: mention.start], *names) + mention.text
    ids = model.encode(told, prompt)
    ends = token_ends(partial(model.tokenizer.decode, skip_special_tokens=True), ids.tolist())
    return ids, len(ids) - tokens_of(ends, len(told) - len(mention.text), len(told)).start


def _asked(
    model: LVLM, swaps: Swaps, sample: Sample, parser: ObjectParser, prompt: str, ids: Tensor, text: str
) -> list[_Asked]:
    """The first mention of each object of a caption."""
    ends = token_ends(partial(model.tokenizer.decode, skip_special_tokens=True), ids.tolist())
    mentions = mention_records(text, ends, sample.truth, parser)
    found: list[_Asked] = []
    for i, m in enumerate(mentions):
        earlier = [e.object for e in mentions[:i]]
        if m.object in earlier:
            continue
        names = swaps.renamed(m.object, earlier, sample.truth)
        other = swaps.picture(sample.image_id, m.object, names and names[0])
        texts = {"kept": (ids[: m.token + m.n_tokens], m.n_tokens)}
        if names is not None:
            texts["text_swapped"] = _renamed_tokens(model, parser, prompt, text, m, names)
        readings = {name: Reading(sample.image, *tokens) for name, tokens in texts.items()}
        if other is not None:
            swapped = {"kept": "picture_swapped", "text_swapped": "both_swapped"}
            readings |= {swapped[name]: Reading(other[1], *tokens) for name, tokens in texts.items()}
        thing, said = swaps.irrelevant(sample.image_id, m.object, earlier, names)
        if thing is not None and swaps.data.erased is not None:
            readings["picture_control"] = Reading(swaps.data.erased(sample.image_id, [thing]), *texts["kept"])
        if said is not None:
            control = _renamed_tokens(model, parser, prompt, text, m, said)
            readings["text_control"] = Reading(sample.image, *control)
        found.append(_Asked(m, other and other[0], names, readings))
    return found


def _maps(trace: TokenTrace, asked: Sequence[_Asked]) -> dict[str, Any]:
    """VHD at the first step, and its mean over the first tokens of correct object words."""
    at = [a.mention.token for a in asked if not a.mention.hallucinated]
    maps = {"vhd": trace.vhd[0]} | ({"vhd_at_words": trace.vhd[at].mean(0)} if at else {})
    return {name: np.round(m.double().cpu().numpy(), 4).tolist() for name, m in maps.items()}


def _records(
    model: LVLM, swaps: Swaps, samples: Sequence[Sample], parser: ObjectParser, config: CauseConfig
) -> list[CauseRecord]:
    inputs = model.inputs([s.image for s in samples], config.data.prompt)
    generation = model.generate(inputs, max_new_tokens=config.max_new_tokens)
    captions = [ids if len(ids) else inputs.input_ids[row, -1:] for row, ids in enumerate(generation.tokens)]
    traces = token_vhd(model, inputs, captions)
    rows = zip(samples, inputs.texts, generation.tokens, generation.texts, strict=True)
    asked = [_asked(model, swaps, s, parser, prompt, ids, text) for s, prompt, ids, text in rows]
    readings = [r for words in asked for a in words for r in a.readings.values()]
    log_p = iter(log_p_of_words(model, readings, config.data.prompt, batch_size=2 * config.run.batch_size))
    records = []
    for sample, text, trace, words in zip(samples, generation.texts, traces, asked, strict=True):
        swapped = tuple(
            SwapRecord(
                object=a.mention.object,
                hallucinated=a.mention.hallucinated,
                token=a.mention.token,
                picture=a.picture,
                text=a.text,
                **{name: round(next(log_p), 5) for name in a.readings},
            )
            for a in words
        )
        records.append(CauseRecord(sample.image_id, BASELINE, text, swapped, **_maps(trace, words)))
    return records


def run_cause(config: CauseConfig) -> CauseReport | None:
    """Measure, or go on with a run that was interrupted; see the module.

    Under a launcher of several processes the first one returns the report, the others None when all is written.
    """
    return cause(Setup.of(config), config)


def cause(setup: Setup, config: CauseConfig) -> CauseReport | None:
    """What the object words of a setup's captions follow."""
    setup.require_truth()
    if setup.data.erased is None and len(setup.data.image_ids) < 2:
        name = setup.data.name
        raise ValueError(f"pictures are swapped within the selection: expected two or more, got one of {name}")
    swaps = Swaps.of(setup.data, config.data.seed)

    def work(_: str, samples: Sequence[Sample]) -> list[CauseRecord]:
        return _records(setup.model, swaps, samples, setup.parser, config)

    manifest = setup.manifest("cause", config, prompt=config.data.prompt, max_new_tokens=config.max_new_tokens)
    out = setup.folder("cause-", config, manifest)
    job = Job("swaps", CauseRecord, setup.data.image_ids, [BASELINE], setup.data.load, work)
    with Run.opened(out, manifest, setup.shard) as run:
        records = run.made(job, config.run)
        return None if records is None else write_report(records, out, config.data.seed, run.failures)
