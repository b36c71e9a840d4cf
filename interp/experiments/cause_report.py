"""From the records of `interp cause` to the shares of words by what they follow, the table and the figure.

The criterion, fixed before anything was measured: a swap matters if it takes more than half of the word's probability,
that is, lowers log p by more than log 2.  A word follows the picture if that swap alone matters, the text if that one
alone does, both if each does; either if neither matters alone but both together do; neither if not even that.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import log
from pathlib import Path
from typing import Any

import numpy as np

from interp import plots
from interp.evaluate.bootstrap import Interval, intervals
from interp.experiments.records import CauseRecord, FailureRecord, SwapRecord
from interp.experiments.report import aligned, cell, without_nan
from interp.folder import write_arrays, write_text
from interp.metrics.ranking import spearman

FOLLOWS = log(2)
"""Nats of log p that a swap must take to matter."""
CAUSES = ("picture", "text", "both", "either", "neither")
GROUPS = {"hallucinated": True, "correct": False}
SWAPS = ("picture_swapped", "text_swapped", "both_swapped")
CONTROLS = {"picture_control": "another thing erased", "text_control": "another object renamed"}


def cause_of(word: SwapRecord) -> str | None:
    """What a word follows (a name in `CAUSES`); None if it could not be asked in all four ways."""
    lost = [None if value is None else word.kept - value for value in (getattr(word, name) for name in SWAPS)]
    picture, text, both = lost
    if picture is None or text is None or both is None:
        return None
    alone = (picture > FOLLOWS, text > FOLLOWS)
    if any(alone):
        return {(True, False): "picture", (False, True): "text", (True, True): "both"}[alone]
    return "either" if both > FOLLOWS else "neither"


@dataclass(frozen=True)
class Followed:
    """What a group of object words follows, with 95 % intervals over images.

    `shares` are percent of the `n` words that were asked in all four ways; `lost` the mean nats of log p that each swap
    takes from them.  `alone` is of the `n_alone` words without an earlier object to rename: percent that follow the
    picture.  `n_left_out` could be asked in neither way.  `controls` is of the irrelevant swaps: percent of the words
    that lose half of p to each; `n_controls` how many words had one.
    """

    shares: dict[str, Interval]
    lost: dict[str, Interval]
    n: int
    alone: Interval | None
    n_alone: int
    n_left_out: int
    controls: dict[str, Interval]
    n_controls: dict[str, int]


@dataclass(frozen=True)
class CauseReport:
    """What hallucinated and correct words follow, and the gate: first-step VHD against VHD at correct object words.

    `vhd_predicts` is Spearman's correlation over the heads of an image, its mean over images: all heads, then by layer.
    """

    followed: dict[str, Followed]
    vhd_predicts: dict[str, Interval | None]
    pictures: dict[str, int]
    out: Path
    n_images: int
    failures: int = 0

    def as_json(self) -> dict[str, Any]:
        """The content of `cause.json`."""
        return {
            "criterion_nats": FOLLOWS,
            "follows": {name: asdict(found) for name, found in self.followed.items()},
            "first_step_vhd_predicts_vhd_at_words": {n: v and asdict(v) for n, v in self.vhd_predicts.items()},
            "pictures_swapped": self.pictures,
            "n_images": self.n_images,
        }

    def __str__(self) -> str:
        rows = [["object words", *CAUSES, "words", "log p lost: picture", "text", "both"]]
        for name, found in self.followed.items():
            shares = [cell(found.shares[c]) for c in CAUSES] if found.n else ["-"] * len(CAUSES)
            lost = [cell(found.lost[s], digits=2) for s in SWAPS] if found.n else ["-"] * len(SWAPS)
            rows.append([name, *shares, str(found.n), *lost])
        head = f"% of object words that follow ..., {self.n_images} images; a swap matters if it takes half of p"
        lines = [head, *aligned(rows), ""]
        for name, found in self.followed.items():
            if found.alone is not None:
                words = f"{found.n_alone} {name} words with no earlier object to rename"
                lines.append(f"{words}: {cell(found.alone)} % follow the picture")
            if found.n_left_out:
                lines.append(f"{found.n_left_out} {name} words had nothing to be swapped with")
            for control, value in found.controls.items():
                words = f"{found.n_controls[control]} {name} words"
                lines.append(f"control, {CONTROLS[control]}: matters for {cell(value)} % of {words}")
        lines.append("pictures: " + ", ".join(f"{n} {how}" for how, n in self.pictures.items()))
        lines += ["", "gate: first-step VHD against VHD at correct object words, Spearman over heads, mean over images"]
        for name, value in self.vhd_predicts.items():
            lines.append(f"  {name:<12}{'-' if value is None else cell(value, True, 2)}")
        failed = [f"{self.failures} images failed; see failures.jsonl"] if self.failures else []
        return "\n".join([*lines, "", *failed, f"results: {self.out}"])


def _means(rows: Sequence[tuple[int, Sequence[float]]], n_images: int, seed: int) -> list[Interval]:
    """The mean of each column over rows `(image, values)`, with intervals over images."""
    width = len(rows[0][1])
    table = np.zeros((n_images, width + 1))
    for image, values in rows:
        table[image] += (*values, 1.0)

    def means(totals: np.ndarray, _: int) -> dict[str, np.ndarray]:
        count = totals[..., -1]  # resamples without such a word know no mean
        with np.errstate(invalid="ignore", divide="ignore"):
            return {str(i): np.asarray(totals[..., i] / count) for i in range(width)}

    return list(intervals(table, means, seed=seed).values())


def _followed(records: Sequence[CauseRecord], wrong: bool, seed: int) -> Followed:
    words = [(i, w) for i, r in enumerate(records) for w in r.words if w.hallucinated == wrong]
    judged = [(i, w, cause) for i, w in words if (cause := cause_of(w)) is not None]
    alone = [(i, w.kept - w.picture_swapped) for i, w in words if w.picture_swapped is not None and w.text is None]
    shares = [(i, [100.0 * (cause == c) for c in CAUSES]) for i, _, cause in judged]
    lost = [(i, [w.kept - getattr(w, s) for s in SWAPS]) for i, w, _ in judged]
    asked = {c: [(i, w.kept - nats) for i, w in words if (nats := getattr(w, c)) is not None] for c in CONTROLS}
    matters = {c: [(i, [100.0 * (nats > FOLLOWS)]) for i, nats in rows] for c, rows in asked.items()}
    few = [(i, [100.0 * (nats > FOLLOWS)]) for i, nats in alone]
    n = len(records)
    return Followed(
        dict(zip(CAUSES, _means(shares, n, seed), strict=True)) if judged else {},
        dict(zip(SWAPS, _means(lost, n, seed), strict=True)) if judged else {},
        len(judged),
        _means(few, n, seed)[0] if alone else None,
        len(alone),
        len(words) - len(judged) - len(alone),
        {c: _means(rows, n, seed)[0] for c, rows in matters.items() if rows},
        {c: len(rows) for c, rows in matters.items()},
    )


def _vhd_predicts(records: Sequence[CauseRecord], seed: int) -> dict[str, Interval | None]:
    """Over all heads, then by layer; None where no image has both maps, or one of them does not vary."""
    known = [
        (i, np.array(r.vhd), np.array(r.vhd_at_words)) for i, r in enumerate(records) if r.vhd_at_words is not None
    ]
    n_layers = len(records[0].vhd)
    parts: dict[str, Callable[[np.ndarray], np.ndarray]] = {"all heads": lambda m: m}
    parts |= {f"layer {layer}": lambda m, layer=layer: m[layer] for layer in range(n_layers)}
    found: dict[str, Interval | None] = {}
    for name, part in parts.items():
        each = [(i, spearman(part(first), part(later))) for i, first, later in known]
        rows = [(i, [r]) for i, r in each if r is not None]
        found[name] = _means(rows, len(records), seed)[0] if rows else None
    return found


def write_report(
    records: Sequence[CauseRecord], out: Path, seed: int = 0, failures: Sequence[FailureRecord] = ()
) -> CauseReport:
    """Write `cause.json`, `swaps.npz` and the figure into `out`; ValueError if no image came through."""
    if not records:
        raise ValueError(f"no image came through; {out / 'failures.jsonl'} says why")
    swapped = [w.picture for r in records for w in r.words if w.picture is not None]
    how = Counter("drawn anew" if p.startswith("without ") else "replaced by another" for p in swapped)
    report = CauseReport(
        followed={name: _followed(records, wrong, seed) for name, wrong in GROUPS.items()},
        vhd_predicts=_vhd_predicts(records, seed),
        pictures=dict(how),
        out=out,
        n_images=len(records),
        failures=len(failures),
    )
    write_text(out / "cause.json", json.dumps(without_nan(report.as_json()), indent=2) + "\n")
    judged = [w for r in records for w in r.words if cause_of(w) is not None]
    lost = {s: np.array([w.kept - getattr(w, s) for w in judged], dtype=float) for s in SWAPS}
    write_arrays(out / "swaps.npz", hallucinated=np.array([w.hallucinated for w in judged], dtype=bool), **lost)
    plots.draw_cause(out)
    return report
