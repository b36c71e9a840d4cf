"""`interp detect`: whether the inside of a model tells hallucinated words from correct ones, beyond the obvious.

Takes the captions of finished `interp study` runs.  A ridge-penalised logistic detector (`interp.metrics.detection`)
sees the model at the step that is about to write an object word, cross-validated by picture.  Baselines to beat: the
position of the word, its probability, and the word itself (in a world of habits some words are nearly always wrong).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from interp import plots
from interp.attribution.detector import INSIDE, WordFeatures, word_features
from interp.evaluate.bootstrap import Interval
from interp.experiments.written import Written, WrittenRun
from interp.metrics.detection import cross_validated
from interp.metrics.ranking import auroc
from interp.models import LVLM

EASY, KNOWN = "position + probability", "position + probability + word"
SHOWN = ("word", KNOWN, f"{KNOWN} + residual stream")
"""What the figure shows beside `EASY` and what lies inside."""


@dataclass(frozen=True)
class Detection:
    """Detectors by what they see, with 95 % intervals over pictures.

    `auroc` is P(score of a hallucinated word > of a correct one); `beyond` is the AUROC gained over the baseline that
    stands before the `+`, on the same pictures.  `scores` are out-of-fold log-odds, `wrong` says which words are
    hallucinated, `images` whose they are.
    """

    auroc: dict[str, Interval]
    beyond: dict[str, Interval]
    scores: dict[str, np.ndarray]
    wrong: np.ndarray
    images: np.ndarray

    def __str__(self) -> str:
        n, total = int(self.wrong.sum()), len(self.wrong)
        lines = [
            f"{n} hallucinated and {total - n} correct object words of {len(np.unique(self.images))} pictures",
            "AUROC of a linear detector, cross-validated by picture; 0.5 is chance",
            f"{'it sees':<52}{'AUROC':<22}beyond the baseline",
        ]
        for name, v in self.auroc.items():
            gain = self.beyond.get(name)
            more = "" if gain is None else f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
            lines.append(f"{name:<52}{f'{v.value:.3f} [{v.low:.3f}, {v.high:.3f}]':<22}{more}".rstrip())
        return "\n".join(lines)

    def write(self, out: Path, settings: dict[str, Any]) -> None:
        """Write `detector.json`, `detector.npz` (the scores) and the ROC curves into a folder."""
        out.mkdir(parents=True, exist_ok=True)
        counts = {"hallucinated": int(self.wrong.sum()), "all": len(self.wrong)}
        found: dict[str, Any] = {"settings": settings, "n_words": counts}
        found["auroc"] = {name: vars(v) for name, v in self.auroc.items()}
        found["beyond_the_baseline"] = {name: vars(v) for name, v in self.beyond.items()}
        (out / "detector.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        arrays = {f"score: {name}": s for name, s in self.scores.items()}
        np.savez(out / "detector.npz", allow_pickle=False, hallucinated=self.wrong, image_id=self.images, **arrays)
        drawn = {name: s for name, s in self.scores.items() if name in (EASY, *INSIDE, *SHOWN)}
        plots.save(plots.roc_curve(drawn, self.wrong), out / "roc.png")


@dataclass(frozen=True)
class _Words:
    """All object words of runs: features, what they name, whether they are wrong, and which picture's they are."""

    features: list[WordFeatures]
    categories: list[str]
    wrong: np.ndarray
    images: np.ndarray
    names: list[int | str]
    """Of the pictures that `images` counts."""

    def column(self, name: str) -> np.ndarray:
        return np.concatenate([getattr(f, name) for f in self.features])

    def inside(self, name: str) -> np.ndarray:
        return np.concatenate([f.inside[name] for f in self.features])


def _gathered(model: LVLM, runs: Sequence[WrittenRun], batch_size: int) -> _Words:
    """Features of every object word, pictures in the order of the runs."""
    chosen = [(run, c) for run in runs for c in run.captions.values() if c.mentions]
    if not chosen:
        raise ValueError(f"{', '.join(str(run.folder) for run in runs)}: no caption names an object")
    features: list[WordFeatures] = []
    for run in runs:
        own = [c for whose, c in chosen if whose is run]
        for start in range(0, len(own), batch_size):
            part: list[Written] = own[start : start + batch_size]
            inputs = model.inputs([run.sample(c.image_id).image for c in part], run.prompt)
            tokens = [c.tokens.to(model.device) for c in part]
            features.append(word_features(model, inputs, tokens, [[m.token for m in c.mentions] for c in part]))
    mentions = [(i, m) for i, (_, c) in enumerate(chosen) for m in c.mentions]
    return _Words(
        features,
        [m.object for _, m in mentions],
        np.array([m.hallucinated for _, m in mentions]),
        np.array([i for i, _ in mentions]),
        [c.image_id if len(runs) == 1 else f"{run.folder.name}/{c.image_id}" for run, c in chosen],
    )


def _baselines(words: _Words) -> dict[str, np.ndarray]:
    place, mention = words.column("position"), words.column("mention")
    position = np.stack([place, place**2, np.log1p(place), mention], 1)
    probability = np.stack([words.column("log_p"), words.column("entropy")], 1)
    names = sorted(set(words.categories))
    word = np.array([[name == c for name in names] for c in words.categories], dtype=float)
    easy = np.hstack([position, probability])
    return {
        "position": position,
        "probability": probability,
        "word": word,
        EASY: easy,
        KNOWN: np.hstack([easy, word]),
    }


def detect(
    model: LVLM, runs: Sequence[WrittenRun], *, batch_size: int = 20, seed: int = 0, resamples: int = 1000
) -> Detection:
    """Train and compare detectors on the object words of runs of one model, all together.

    Raises ValueError where they have words of one kind only, or are of several models.
    """
    if len({run.manifest["weights"] for run in runs}) != 1:
        raise ValueError(f"detectors are of one model; {', '.join(str(run.folder) for run in runs)} are not")
    words = _gathered(model, runs, batch_size)
    baselines = _baselines(words)
    scores = {}
    for name, x in baselines.items():
        scores[name] = cross_validated([x], words.wrong, words.images, has_baseline=True, seed=seed)
    for name in INSIDE:
        scores[name] = cross_validated([words.inside(name)], words.wrong, words.images, seed=seed)
    beyond = {}
    for base in (EASY, KNOWN):
        for name in INSIDE:
            both = [baselines[base], words.inside(name)]
            beyond[f"{base} + {name}"] = base
            scores[f"{base} + {name}"] = cross_validated(both, words.wrong, words.images, has_baseline=True, seed=seed)
    drawn = _resampled(scores, words, resamples, seed)
    whole = {name: auroc(s, words.wrong) or 0.0 for name, s in scores.items()}
    return Detection(
        {name: _interval(whole[name], drawn[name]) for name in scores},
        {name: _interval(whole[name] - whole[base], drawn[name] - drawn[base]) for name, base in beyond.items()},
        scores,
        words.wrong,
        np.array(words.names)[words.images],
    )


def _resampled(scores: dict[str, np.ndarray], words: _Words, resamples: int, seed: int) -> dict[str, np.ndarray]:
    """AUROCs over pictures drawn with replacement, the same ones for every detector."""
    random, n = np.random.default_rng(seed), int(words.images.max()) + 1
    places = [np.flatnonzero(words.images == i) for i in range(n)]
    drawn: dict[str, list[float]] = {name: [] for name in scores}
    for _ in range(resamples):
        pick = np.concatenate([places[i] for i in random.integers(0, n, n)])
        for name, s in scores.items():
            value = auroc(s[pick], words.wrong[pick])
            drawn[name].append(np.nan if value is None else value)
    return {name: np.array(values) for name, values in drawn.items()}


def _interval(value: float, drawn: np.ndarray) -> Interval:
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Interval(float(value), float(low), float(high))
