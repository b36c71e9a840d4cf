"""From a study's caption records to its word records, its summary, its table and its figures."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from interp import plots
from interp.evaluate.bootstrap import Interval, McNemar, differences, intervals, mcnemar
from interp.evaluate.chair import CaptionScore, rates, table
from interp.evaluate.objects import Mention
from interp.experiments.records import Records
from interp.metrics.ranking import auroc, stratified_auroc

POSITION_STRATA = 10
_Row = dict[str, Any]


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


@dataclass(frozen=True)
class ChosenHeads:
    """The heads that a method chose: how often each, in % of images, and how alike the sets of two images are.

    `overlap` is the mean over pairs of images of the heads in both by those in either (Jaccard); None for one image.
    """

    frequency: Float[np.ndarray, "layer head"]
    overlap: float | None

    @classmethod
    def of(cls, sets: Sequence[Sequence[Sequence[int]]], shape: tuple[int, int]) -> "ChosenHeads":
        """From the `(layer, head)` pairs of each image."""
        chosen = np.zeros((len(sets), *shape))
        for row, heads in zip(chosen, sets, strict=True):
            for layer, head in heads:
                row[layer, head] = 1
        flat = chosen.reshape(len(sets), -1)
        both, size = flat @ flat.T, flat.sum(1)
        either = size[:, None] + size - both
        jaccard = np.divide(both, either, out=np.ones_like(both), where=either > 0)
        pairs = ~np.eye(len(sets), dtype=bool)
        return cls(100 * chosen.mean(0), float(jaccard[pairs].mean()) if len(sets) > 1 else None)


@dataclass(frozen=True)
class Summary:
    """A study's results: rates in percent with 95 % intervals, differences from greedy, chosen heads, T-VHD."""

    methods: dict[str, dict[str, Interval]]
    versus_greedy: dict[str, dict[str, Interval]]
    changed: dict[str, McNemar]
    heads: dict[str, ChosenHeads]
    t_vhd: TVhdSummary
    out: Path
    n_images: int
    failures: int = 0

    def as_json(self) -> dict[str, Any]:
        """The content of `summary.json`."""
        methods = {}
        for name, values in self.methods.items():
            methods[name] = {key: value.value for key, value in values.items()}
            methods[name]["interval"] = {key: [value.low, value.high] for key, value in values.items()}
            for speed in ("tokens_per_s", "images_per_s"):
                del methods[name]["interval"][speed]  # the images of a batch share a clock
            if name in self.versus_greedy:
                versus = self.versus_greedy[name].items()
                methods[name]["versus_greedy"] = {key: asdict(value) for key, value in versus}
                methods[name]["mcnemar"] = asdict(self.changed[name])
        for name, chosen in self.heads.items():
            methods[name]["heads"] = {"frequency": chosen.frequency.tolist(), "overlap": chosen.overlap}
        return {"methods": methods, "t_vhd": asdict(self.t_vhd)}

    def __str__(self) -> str:
        shared = [
            f"{name}: two images' head sets share {100 * chosen.overlap:.0f} % of the heads in either"
            for name, chosen in self.heads.items()
            if chosen.overlap is not None
        ]
        lines = [*_table(self), "", *shared, *([""] if shared else []), *_t_vhd_lines(self.t_vhd)]
        if self.failures:
            lines += ["", f"{self.failures} captions failed ({self.out / 'failures.jsonl'}): the table is of the other"]
            lines[-1] += f" {self.n_images} images; run again to try them once more"
        return "\n".join([*lines, "", f"results: {self.out}"])


def _score(row: _Row) -> CaptionScore:
    """The score of a caption, from its record."""
    named = {m["object"] for m in row["mentions"]}
    return CaptionScore(
        tuple(Mention(m["object"], m["start"], m["end"]) for m in row["mentions"]),
        tuple(m["hallucinated"] for m in row["mentions"]),
        frozenset(named & set(row["truth"])),
        frozenset(row["truth"]),
        len(row["caption"].split()),
    )


def _counts(rows: Sequence[_Row]) -> np.ndarray:
    """For each caption the counts of CHAIR (see `chair.table`), then tokens, seconds, and bytes of the KV cache."""
    effort = np.array([(row["n_tokens"], row["seconds"], row["kv_bytes"]) for row in rows], dtype=float)
    return np.hstack([table([_score(row) for row in rows]), effort])


def _rates(totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
    seconds = np.maximum(totals[..., 7], 1e-9)
    effort = {"tokens_per_s": totals[..., 6] / seconds, "images_per_s": n / seconds}
    return rates(totals[..., :6], n) | effort | {"kv_kib": totals[..., 8] / n / 1024}


def word_records(rows: Sequence[_Row]) -> list[_Row]:
    """One record for each object mention: what `tokens.jsonl` holds; with T-VHD where the caption was looked into."""
    words = []
    for row in rows:
        for order, mention in enumerate(row["mentions"]):
            word = {"image_id": row["image_id"], "method": row["method"], **mention, "mention": order}
            if "t_vhd" in row:
                token = mention["token"]
                spans = enumerate(row["sentences"])
                word["sentence"] = next((i for i, (start, stop) in spans if start <= token < stop), None)
                word |= {"t_vhd": row["t_vhd"][token], "probability": row["probability"][token]}
            words.append(word)
    return words


def sentence_records(rows: Sequence[_Row]) -> list[_Row]:
    """One record for each sentence that names an object: its mean T-VHD, and whether it names one that is not there."""
    found = []
    for row in rows:
        for start, stop in row.get("sentences", []):
            named = [m["hallucinated"] for m in row["mentions"] if start <= m["token"] < stop]
            if named:
                found.append(
                    {
                        "image_id": row["image_id"],
                        "t_vhd": float(np.mean(row["t_vhd"][start:stop])),
                        "hallucinated": any(named),
                    }
                )
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
    words: Sequence[_Row], sentences: Sequence[_Row], top_k: int, seed: int = 0, resamples: int = 1000
) -> TVhdSummary:
    """How well T-VHD tells correct words from hallucinated ones, from `word_records` that have it."""
    correct = np.array([not w["hallucinated"] for w in words], dtype=bool)
    score = np.array([w["t_vhd"] for w in words], dtype=float)
    position = np.array([w["token"] for w in words], dtype=float)
    edges = np.quantile(position, np.linspace(0, 1, POSITION_STRATA + 1)[1:-1]) if len(words) else position
    strata = np.searchsorted(edges, position)
    images = np.array([w["image_id"] for w in words])
    return TVhdSummary(
        auroc=auroc(score, correct),
        auroc_position_controlled=stratified_auroc(score, correct, strata),
        auroc_position=auroc(-position, correct),
        auroc_probability=auroc([w["probability"] for w in words], correct),
        auroc_sentence=auroc([s["t_vhd"] for s in sentences], [not s["hallucinated"] for s in sentences]),
        interval=_resampled_aurocs(score, correct, strata, images, seed, resamples),
        mean_hallucinated=float(score[~correct].mean()) if (~correct).any() else None,
        mean_correct=float(score[correct].mean()) if correct.any() else None,
        k=top_k,
        position_strata=POSITION_STRATA,
        n_hallucinated=int((~correct).sum()),
        n_correct=int(correct.sum()),
    )


def cell(value: Interval, signed: bool = False, digits: int = 1) -> str:
    """A value with its interval, as text."""
    form = f"{'+' if signed else ''}.{digits}f"
    return f"{value.value:{form}} [{value.low:{form}}, {value.high:{form}}]"


_COLUMNS = {"chair_s": "CHAIR_S", "chair_i": "CHAIR_I", "recall": "recall", "length": "length"}


def _table(summary: Summary) -> list[str]:
    """The table of methods, and under it the paired differences from greedy."""
    rows = [["method", *_COLUMNS.values(), "tokens/s", "images/s", "KV KiB"]]
    for name, values in summary.methods.items():
        effort = (("tokens_per_s", 0), ("images_per_s", 1), ("kv_kib", 0))
        shown = (f"{values[c].value:.{digits}f}" for c, digits in effort)
        rows.append([name, *(cell(values[c]) for c in _COLUMNS), *shown])
    lines = ["with 95 % bootstrap intervals over images", *aligned(rows)]
    if summary.versus_greedy:
        rows = [["method", *_COLUMNS.values(), "captions fixed/broken", "McNemar p"]]
        for name, values in summary.versus_greedy.items():
            test = summary.changed[name]
            counts = [f"{test.better}/{test.worse}", f"{test.p:.2g}"]
            rows.append([name, *(cell(values[c], signed=True) for c in _COLUMNS), *counts])
        lines += ["", "minus greedy on the same images, paired", *aligned(rows)]
    return lines


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with columns under each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _t_vhd_lines(t: TVhdSummary) -> list[str]:
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


def _chosen(order: dict[str, list[_Row]]) -> dict[str, ChosenHeads]:
    """The heads that each method chose, where one does."""
    shape = next((np.shape(row["vhd"]) for row in order["greedy"] if "vhd" in row), None)
    if shape is None:
        return {}
    found = {name: [row["heads"] for row in rows if "heads" in row] for name, rows in order.items()}
    return {name: ChosenHeads.of(sets, (shape[0], shape[1])) for name, sets in found.items() if sets}


def write_report(rows: Sequence[_Row], methods: Sequence[str], out: Path, *, top_k: int, seed: int) -> Summary:
    """Write `tokens.jsonl`, `summary.json` and the figures of a study into `out`."""
    by = {name: {r["image_id"]: r for r in rows if r["method"] == name} for name in methods}
    common = sorted(set.intersection(*(set(found) for found in by.values())))
    if not common:
        raise ValueError(f"no image came through with every method; {out / 'failures.jsonl'} says why")
    order = {name: [found[i] for i in common] for name, found in by.items()}
    tables = {name: _counts(found) for name, found in order.items()}
    words = [word for found in order.values() for word in word_records(found)]
    traced, spans = [w for w in words if "t_vhd" in w], sentence_records(order["greedy"])
    summary = Summary(
        {name: intervals(table, _rates, seed=seed) for name, table in tables.items()},
        {n: differences(t, tables["greedy"], _rates, seed=seed) for n, t in tables.items() if n != "greedy"},
        {n: mcnemar(t[:, 0] > 0, tables["greedy"][:, 0] > 0) for n, t in tables.items() if n != "greedy"},
        _chosen(order),
        t_vhd_summary(traced, spans, top_k, seed),
        out,
        n_images=len(common),
        failures=len(Records(out / "failures.jsonl").rows),
    )
    (out / "tokens.jsonl").write_text("".join(json.dumps(w) + "\n" for w in words), encoding="utf-8")
    (out / "summary.json").write_text(json.dumps(summary.as_json(), indent=2) + "\n", encoding="utf-8")
    maps = np.array([r["vhd"] for r in order["greedy"] if "vhd" in r])
    if len(maps):
        np.save(out / "vhd.npy", maps)
        np.savez(out / "vhd.npz", allow_pickle=False, vhd=maps.mean(0))
    looked_into = {
        "words": [w["t_vhd"] for w in traced],
        "words_hallucinated": [w["hallucinated"] for w in traced],
        "sentences": [s["t_vhd"] for s in spans],
        "sentences_hallucinated": [s["hallucinated"] for s in spans],
    }
    np.savez(out / "t_vhd.npz", allow_pickle=False, top_k=top_k, **looked_into)
    plots.draw_study(out)
    return summary
