"""From a study's caption records to its word records, its summary, its table and its figures."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from interp import plots
from interp.evaluate.bootstrap import Interval, McNemar, differences, intervals, mcnemar
from interp.evaluate.chair import rates
from interp.experiments.compared import BASELINE
from interp.experiments.operating import Knob, OperatingCurve, operating_curve, points_of, rows_of
from interp.experiments.records import CaptionRecord, FailureRecord, ImageRecord, ItemId, WordRecord, to_json
from interp.experiments.words import TVhdSummary, sentence_records, t_vhd_lines, t_vhd_summary, word_records
from interp.folder import replacing, write_arrays, write_text
from interp.metrics.signal_detection import sensitivity


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
    """A study's results: rates in percent with 95 % intervals, differences from greedy, chosen heads, T-VHD.

    All of them are of the same images, `image_ids`.  `empty` counts the captions without a word.  d' and criterion are
    of `n_objects` categories: those in a picture of the study, or named by one of its methods.
    """

    methods: dict[str, dict[str, Interval]]
    versus_greedy: dict[str, dict[str, Interval]]
    changed: dict[str, McNemar]
    heads: dict[str, ChosenHeads]
    t_vhd: TVhdSummary
    out: Path
    image_ids: tuple[ItemId, ...]
    empty: dict[str, int]
    n_objects: int
    curve: OperatingCurve | None = None
    failures: int = 0

    def as_json(self) -> dict[str, Any]:
        """The content of `summary.json`."""
        methods = {}
        for name, values in self.methods.items():
            methods[name] = {key: value.value for key, value in values.items()}
            methods[name]["empty"] = self.empty[name]
            methods[name]["interval"] = {key: [value.low, value.high] for key, value in values.items()}
            for speed in ("tokens_per_s", "images_per_s"):
                del methods[name]["interval"][speed]  # the images of a batch share a clock
            if name in self.versus_greedy:
                versus = self.versus_greedy[name].items()
                methods[name]["versus_greedy"] = {key: asdict(value) for key, value in versus}
                methods[name]["mcnemar"] = asdict(self.changed[name])
        for name, chosen in self.heads.items():
            methods[name]["heads"] = {"frequency": chosen.frequency.tolist(), "overlap": chosen.overlap}
        found = {"methods": methods, "t_vhd": asdict(self.t_vhd), "n_images": len(self.image_ids)}
        found["n_objects"] = self.n_objects
        if self.curve is not None:
            found["operating_curve"] = self.curve.as_json()
        return without_nan(found)

    def __str__(self) -> str:
        shared = [
            f"{name}: two images' head sets share {100 * chosen.overlap:.0f} % of the heads in either"
            for name, chosen in self.heads.items()
            if chosen.overlap is not None
        ]
        curve = [] if self.curve is None else _curve_lines(self.curve)
        lines = [*_table(self), "", *_detection(self), "", *_gate(self), *curve]
        lines += [*shared, *([""] if shared else []), *t_vhd_lines(self.t_vhd)]
        if self.failures:
            lines += ["", f"{self.failures} captions failed ({self.out / 'failures.jsonl'}): the table is of the other"]
            lines[-1] += f" {len(self.image_ids)} images; run again to try them once more"
        look = f"the captions, to look through: interp report {self.out}"
        return "\n".join([*lines, "", f"results: {self.out}", look])


def without_nan(value: Any) -> Any:
    """The same for JSON, which knows no nan: None in its place."""
    if isinstance(value, dict):
        return {key: without_nan(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(x) for x in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _vocabulary(records: Sequence[CaptionRecord]) -> frozenset[str]:
    """The objects that count as absent where they are: those in a picture, or named, anywhere in the study."""
    return frozenset(x for r in records for x in (*r.truth, *(m.object for m in r.mentions)))


def _counts(vocabulary: frozenset[str], records: Sequence[CaptionRecord]) -> np.ndarray:
    """For each caption the counts of CHAIR (see `chair.rates`), then tokens, seconds, and bytes of the KV cache.

    Last come the absent objects that it names, and all absent ones, of a vocabulary.
    """
    rows = []
    for r in records:
        wrong = [m.hallucinated for m in r.mentions]
        recalled = {m.object for m in r.mentions} & set(r.truth)
        counts = (any(wrong), sum(wrong), len(wrong), len(recalled), len(r.truth), len(r.caption.split()))
        absent = vocabulary - set(r.truth)
        named = len({m.object for m in r.mentions} & absent)
        rows.append((*counts, r.n_tokens, r.seconds, r.kv_bytes, named, len(absent)))
    return np.array(rows, dtype=float)


def _rates(totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
    seconds = np.maximum(totals[..., 7], 1e-9)
    effort = {"tokens_per_s": totals[..., 6] / seconds, "images_per_s": n / seconds}
    seen = sensitivity(totals[..., [3, 4, 9, 10]])
    return rates(totals[..., :6], n) | effort | {"kv_kib": totals[..., 8] / n / 1024} | seen


def cell(value: Interval, signed: bool = False, digits: int = 1) -> str:
    """A value with its interval, as text."""
    form = f"{'+' if signed else ''}.{digits}f"
    if math.isnan(value.value):
        return "-"
    if math.isnan(value.low):  # unknown in some resamples
        return f"{value.value:{form}} [-, -]"
    return f"{value.value:{form}} [{value.low:{form}}, {value.high:{form}}]"


_COLUMNS = {"chair_s": "CHAIR_S", "chair_i": "CHAIR_I", "recall": "recall", "length": "length"}


def _table(summary: Summary) -> list[str]:
    """The table of methods, and under it the paired differences from greedy."""
    rows = [["method", *_COLUMNS.values(), "empty", "tokens/s", "images/s", "KV KiB"]]
    for name, values in summary.methods.items():
        effort = (("tokens_per_s", 0), ("images_per_s", 1), ("kv_kib", 0))
        shown = (f"{values[c].value:.{digits}f}" for c, digits in effort)
        rows.append([name, *(cell(values[c]) for c in _COLUMNS), str(summary.empty[name]), *shown])
    lines = ["with 95 % bootstrap intervals over images", *aligned(rows)]
    if summary.versus_greedy:
        rows = [["method", *_COLUMNS.values(), "captions fixed/broken", "McNemar p"]]
        for name, values in summary.versus_greedy.items():
            test = summary.changed[name]
            counts = [f"{test.better}/{test.worse}", f"{test.p:.2g}"]
            rows.append([name, *(cell(values[c], signed=True) for c in _COLUMNS), *counts])
        lines += ["", "minus greedy on the same images, paired", *aligned(rows)]
    return lines


def _detection(summary: Summary) -> list[str]:
    """The table of d' and criterion, with the paired differences from greedy."""
    rows = [["method", "d'", "criterion", "d' minus greedy", "criterion minus greedy"]]
    for name, values in summary.methods.items():
        versus = summary.versus_greedy.get(name)
        more = ["", ""] if versus is None else [cell(versus[c], True, 2) for c in ("d_prime", "criterion")]
        rows.append([name, *(cell(values[c], digits=2) for c in ("d_prime", "criterion")), *more])
    head = f"naming present against absent objects, of {summary.n_objects}: d' is sight, a higher criterion names less"
    return [head, *aligned(rows)]


def _gate(summary: Summary) -> list[str]:
    """Whether random heads at the same alpha do harm: where they do, VHR's own choice is not judged fairly."""
    lines = []
    for name, versus in summary.versus_greedy.items():
        if name.split(":")[0] == "random-heads":
            harm = versus["chair_s"].low > 0 or versus["recall"].high < 0
            change = f"CHAIR_S {cell(versus['chair_s'], signed=True)}, recall {cell(versus['recall'], signed=True)}"
            lines.append(f"gate, {name}: {change}: {'these heads do harm' if harm else 'no harm is seen'}")
    return [*lines, ""] if lines else []


def _curve_lines(curve: OperatingCurve) -> list[str]:
    points, heights = rows_of(curve, cell)
    where = {"stopping": "the log-odds of stopping", "naming": "the first tokens of objects' names"}[curve.knob]
    head = f"operating curve of greedy decoding: nats added to {where}"
    return [head, *aligned(points), "", *aligned(heights), ""]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with columns under each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _chosen(order: dict[str, list[CaptionRecord]]) -> dict[str, ChosenHeads]:
    """The heads that each method chose, where one does."""
    shape: Any = next((np.shape(r.vhd) for r in order[BASELINE] if r.vhd is not None), None)
    if shape is None:
        return {}
    found = {name: [r.heads for r in records if r.heads is not None] for name, records in order.items()}
    return {name: ChosenHeads.of(sets, (shape[0], shape[1])) for name, sets in found.items() if sets}


def _in_order(records: Sequence[CaptionRecord], image_ids: Sequence[ItemId], name: str) -> list[CaptionRecord]:
    by = {r.image_id: r for r in records if r.method == name}
    return [by[i] for i in image_ids]


def common_images(records: Sequence[ImageRecord], methods: Sequence[str]) -> list[ItemId]:
    """The images that came through with every method, in their order: what a table may be of."""
    of = {name: {r.image_id for r in records if r.method == name} for name in methods}
    return sorted(set.intersection(*of.values()), key=lambda i: (isinstance(i, str), i))


def summarised(
    records: Sequence[CaptionRecord],
    methods: Sequence[str],
    out: Path,
    *,
    top_k: int,
    seed: int,
    failures: Sequence[FailureRecord] = (),
    among: Sequence[ItemId] | None = None,
    knob: Knob | None = None,
) -> Summary:
    """What the captions say, of the images that came through with every method (and are `among` these).

    `knob` says which operating curve there are captions for, if any.
    """
    points = {} if knob is None else points_of(knob)
    common = [i for i in common_images(records, [*methods, *points]) if among is None or i in set(among)]
    if not common:
        raise ValueError(f"no image came through with every method; {out / 'failures.jsonl'} says why")
    order = {name: _in_order(records, common, name) for name in methods}
    vocabulary = _vocabulary([r for found in order.values() for r in found])
    tables = {name: _counts(vocabulary, found) for name, found in order.items()}
    others = {name: table for name, table in tables.items() if name != BASELINE}
    base, curve = tables[BASELINE], None
    if knob is not None:
        swept = {bias: _counts(vocabulary, _in_order(records, common, name)) for name, bias in points.items()}
        curve = operating_curve(knob, {0.0: base} | swept, others, _rates, seed)
    return Summary(
        {name: intervals(table, _rates, seed=seed) for name, table in tables.items()},
        {name: differences(table, base, _rates, seed=seed) for name, table in others.items()},
        {name: mcnemar(table[:, 0] > 0, base[:, 0] > 0) for name, table in others.items()},
        _chosen(order),
        t_vhd_summary(_traced(word_records(order[BASELINE])), sentence_records(order[BASELINE]), top_k, seed),
        out,
        tuple(common),
        {name: sum(not r.caption for r in found) for name, found in order.items()},
        len(vocabulary),
        curve,
        len(failures),
    )


def versus(records: Sequence[CaptionRecord], ours: str, theirs: str, seed: int = 0) -> dict[str, Interval]:
    """Each rate of one method minus another's on the same images, with its paired interval."""
    common = common_images(records, [ours, theirs])
    both = [_in_order(records, common, name) for name in (ours, theirs)]
    vocabulary = _vocabulary([*both[0], *both[1]])
    return differences(_counts(vocabulary, both[0]), _counts(vocabulary, both[1]), _rates, seed=seed)


def _traced(words: Sequence[WordRecord]) -> list[WordRecord]:
    return [w for w in words if w.t_vhd is not None]


def write_report(summary: Summary, records: Sequence[CaptionRecord]) -> None:
    """Write `tokens.jsonl`, `summary.json` and the figures of a study into its folder."""
    out, methods = summary.out, list(summary.methods)
    order = {name: _in_order(records, summary.image_ids, name) for name in methods}
    words = [word for found in order.values() for word in word_records(found)]
    write_text(out / "tokens.jsonl", "".join(json.dumps(to_json(w)) + "\n" for w in words))
    write_text(out / "summary.json", json.dumps(summary.as_json(), indent=2) + "\n")
    maps = np.array([r.vhd for r in order[BASELINE] if r.vhd is not None])
    if len(maps):
        with replacing(out / "vhd.npy") as new, new.open("wb") as file:
            np.save(file, maps)
        write_arrays(out / "vhd.npz", vhd=maps.mean(0))
    traced, spans = _traced(words), sentence_records(order[BASELINE])
    write_arrays(
        out / "t_vhd.npz",
        top_k=np.array(summary.t_vhd.k),
        words=np.array([w.t_vhd for w in traced], dtype=float),
        words_hallucinated=np.array([w.hallucinated for w in traced], dtype=bool),
        sentences=np.array([s.t_vhd for s in spans], dtype=float),
        sentences_hallucinated=np.array([s.hallucinated for s in spans], dtype=bool),
    )
    plots.draw_study(out)
