"""`interp score`: a score of captions that the user brings, over the captions of a finished study.

A score is a function of a caption's text and the objects in its picture that returns a number:

    def length(text: str, truth: frozenset[str]) -> float:
        return len(text.split())

named `mypackage.mymodule:length`, or registered as an entry point of the group `interp.scores`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from interp.evaluate.bootstrap import Interval, differences, intervals
from interp.experiments.records import CaptionRecord, read_records
from interp.plugins import SCORES, brought, registered

Score = Callable[[str, frozenset[str]], float]


@dataclass(frozen=True)
class OwnScore:
    """The mean of a score by method, with 95 % intervals over images, and the paired difference from the first."""

    name: str
    n_images: int
    means: dict[str, Interval]
    versus_first: dict[str, Interval]

    def __str__(self) -> str:
        lines = [f"{self.name}: mean over {self.n_images} images, with 95 % bootstrap intervals"]
        for method, v in self.means.items():
            d = self.versus_first.get(method)
            more = "" if d is None else f"   {d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"
            lines.append(f"{method:<32}{v.value:.3f} [{v.low:.3f}, {v.high:.3f}]{more}")
        return "\n".join(lines)


def score_run(folder: str | Path, name: str, seed: int = 0) -> OwnScore:
    """Score the captions of a run; ValueError if the score cannot be found or gives anything but finite numbers."""
    score: Score | None = brought(SCORES, name)
    if score is None or not callable(score):
        known = ", ".join(registered(SCORES)) or "none is registered"
        raise ValueError(f"a score is package.module:function or an entry point ({known}), got {name!r}")
    rows = read_records(Path(folder) / "captions.jsonl", CaptionRecord)
    if not rows:
        raise ValueError(f"{folder} has no captions: expected a folder of interp study")
    found: dict[str, dict[object, float]] = {}
    for row in rows:
        value = score(row.caption, frozenset(row.truth))
        if isinstance(value, bool | int | float | np.number) and math.isfinite(value):
            found.setdefault(row.method, {})[row.image_id] = float(value)
        else:
            raise ValueError(f"{name} gives {value!r} for image {row.image_id} of {row.method}; expected a number")
    images = sorted(set.intersection(*(set(values) for values in found.values())), key=str)
    if not images:
        raise ValueError(f"no image of {folder} has a caption of every method yet")
    tables = {m: np.array([[values[i], 1.0] for i in images]) for m, values in found.items()}

    def mean(totals: np.ndarray, _: int) -> dict[str, Any]:
        return {"mean": totals[..., 0] / totals[..., 1]}

    first = next(iter(tables.values()))
    return OwnScore(
        name,
        len(images),
        {m: intervals(table, mean, seed=seed)["mean"] for m, table in tables.items()},
        {m: differences(t, first, mean, seed=seed)["mean"] for m, t in list(tables.items())[1:]},
    )
