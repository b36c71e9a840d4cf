"""T-VHD of the object words of captions: how well it tells hallucinated words from correct ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interp.experiments.records import CaptionRecord, ItemId, WordRecord
from interp.metrics.ranking import auroc, stratified_auroc

POSITION_STRATA = 10


@dataclass(frozen=True)
class TVhdSummary:
    """T-VHD of object words: every AUROC is P(a correct word scores higher than a hallucinated one), 0.5 is chance.

    The score of `auroc_position` is how early the word comes; `auroc_position_controlled` compares words of the
    same tenth of positions only; `auroc_sentence` takes the mean over a sentence that names an object. `interval`
    holds 95 % intervals over images. None where a group is empty.
    """

    auroc: float | None
    auroc_position_controlled: float | None
    auroc_position: float | None
    auroc_probability: float | None
    auroc_sentence: float | None
    interval: dict[str, tuple[float, float] | None]
    mean_hallucinated: float | None
    mean_correct: float | None
    k: int
    position_strata: int
    n_hallucinated: int
    n_correct: int


def word_records(records: Sequence[CaptionRecord]) -> list[WordRecord]:
    """One record for each object mention: what `tokens.jsonl` holds; with T-VHD where the caption was looked into."""
    words = []
    for r in records:
        for order, mention in enumerate(r.mentions):
            word: dict[str, Any] = {"image_id": r.image_id, "method": r.method, **vars(mention), "mention": order}
            if r.t_vhd is not None and r.probability is not None:
                spans = enumerate(r.sentences or ())
                word["sentence"] = next((i for i, (start, stop) in spans if start <= mention.token < stop), None)
                word |= {"t_vhd": r.t_vhd[mention.token], "probability": r.probability[mention.token]}
            words.append(WordRecord(**word))
    return words


@dataclass(frozen=True)
class SentenceVhd:
    """A sentence that names an object: its mean T-VHD, and whether it names one that is not there."""

    image_id: ItemId
    t_vhd: float
    hallucinated: bool


def sentence_records(records: Sequence[CaptionRecord]) -> list[SentenceVhd]:
    """The sentences that name an object, of the captions that were looked into."""
    found = []
    for r in records:
        for start, stop in (r.sentences or ()) if r.t_vhd is not None else ():
            named = [m.hallucinated for m in r.mentions if start <= m.token < stop]
            if named and r.t_vhd is not None:
                found.append(SentenceVhd(r.image_id, float(np.mean(r.t_vhd[start:stop])), any(named)))
    return found


def _resampled_aurocs(
    score: np.ndarray, correct: np.ndarray, strata: np.ndarray, images: np.ndarray, seed: int, resamples: int
) -> dict[str, tuple[float, float] | None]:
    """95 % intervals of the two AUROCs of T-VHD, bootstrapped over images."""
    groups = [np.flatnonzero(images == i) for i in np.unique(images)]
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[float | None]] = {"auroc": [], "auroc_position_controlled": []}
    for _ in range(resamples if groups else 0):
        pick = np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))])
        drawn["auroc"].append(auroc(score[pick], correct[pick]))
        drawn["auroc_position_controlled"].append(stratified_auroc(score[pick], correct[pick], strata[pick]))
    intervals = {}
    for name, values in drawn.items():
        known = [v for v in values if v is not None]
        low, high = np.percentile(known, [2.5, 97.5]) if known else (0.0, 0.0)
        intervals[name] = (float(low), float(high)) if known else None
    return intervals


def t_vhd_summary(
    words: Sequence[WordRecord], sentences: Sequence[SentenceVhd], top_k: int, seed: int = 0, resamples: int = 1000
) -> TVhdSummary:
    """How well T-VHD tells correct words from hallucinated ones, from `word_records` that have it."""
    correct = np.array([not w.hallucinated for w in words], dtype=bool)
    score = np.array([w.t_vhd for w in words], dtype=float)
    position = np.array([w.token for w in words], dtype=float)
    edges = np.quantile(position, np.linspace(0, 1, POSITION_STRATA + 1)[1:-1]) if len(words) else position
    strata = np.searchsorted(edges, position)
    images = np.array([w.image_id for w in words])
    return TVhdSummary(
        auroc=auroc(score, correct),
        auroc_position_controlled=stratified_auroc(score, correct, strata),
        auroc_position=auroc(-position, correct),
        auroc_probability=auroc(np.array([w.probability for w in words], dtype=float), correct),
        auroc_sentence=auroc([s.t_vhd for s in sentences], [not s.hallucinated for s in sentences]),
        interval=_resampled_aurocs(score, correct, strata, images, seed, resamples),
        mean_hallucinated=float(score[~correct].mean()) if (~correct).any() else None,
        mean_correct=float(score[correct].mean()) if correct.any() else None,
        k=top_k,
        position_strata=POSITION_STRATA,
        n_hallucinated=int((~correct).sum()),
        n_correct=int(correct.sum()),
    )


def t_vhd_lines(t: TVhdSummary) -> list[str]:
    """The part of a study's table that is about T-VHD."""
    if t.auroc is None:
        return [f"T-VHD: no comparison ({t.n_hallucinated} hallucinated, {t.n_correct} correct object words)"]
    lines = [
        f"T-VHD (k = {t.k}) of {t.n_hallucinated} hallucinated and {t.n_correct} correct object words: "
        f"mean {t.mean_hallucinated:.1f} and {t.mean_correct:.1f}",
        "AUROC, P(correct word > hallucinated word); 0.5 is chance",
    ]
    for name, value, interval in (
        ("T-VHD", t.auroc, t.interval["auroc"]),
        ("T-VHD at the same position", t.auroc_position_controlled, t.interval["auroc_position_controlled"]),
        ("position alone (earlier is higher)", t.auroc_position, None),
        ("token probability alone", t.auroc_probability, None),
        ("mean T-VHD of the sentence", t.auroc_sentence, None),
    ):
        shown = "-" if value is None else f"{value:.2f}"
        lines.append(f"  {name:36}{shown}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else ""))
    return lines
