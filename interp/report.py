"""From a study's caption records to its word records, its summary, its table and its figures."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from interp import plots
from interp.evaluate.chair import rates
from interp.evaluate.statistics import Interval, differences, intervals
from interp.metrics.ranking import auroc, stratified_auroc

POSITION_STRATA = 10
_Row = dict[str, Any]


@dataclass(frozen=True)
class Summary:
    """A study's results: rates in percent with 95 % intervals, differences from greedy, T-VHD of words."""

    methods: dict[str, dict[str, Interval]]
    versus_greedy: dict[str, dict[str, Interval]]
    t_vhd: dict[str, Any]
    out: Path

    def as_json(self) -> dict[str, Any]:
        """The content of `summary.json`."""
        methods = {}
        for name, values in self.methods.items():
            methods[name] = {key: value.value for key, value in values.items()}
            methods[name]["interval"] = {key: [value.low, value.high] for key, value in values.items()}
            if name in self.versus_greedy:
                versus = self.versus_greedy[name].items()
                methods[name]["versus_greedy"] = {key: asdict(value) for key, value in versus}
        return {"methods": methods, "t_vhd": self.t_vhd}

    def __str__(self) -> str:
        return "\n".join([*_table(self), "", *_t_vhd_lines(self.t_vhd), "", f"results: {self.out}"])


def _counts(rows: Sequence[_Row]) -> np.ndarray:
    """For each caption the counts of CHAIR (see `chair.table`), then tokens and seconds."""
    table = []
    for row in rows:
        wrong = [m["hallucinated"] for m in row["mentions"]]
        recalled = {m["object"] for m in row["mentions"]} & set(row["truth"])
        chair = (any(wrong), sum(wrong), len(wrong), len(recalled), len(row["truth"]), len(row["caption"].split()))
        table.append((*chair, row["n_tokens"], row["seconds"]))
    return np.array(table, dtype=float)


def _rates(totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
    return rates(totals[..., :6], n) | {"tokens_per_s": totals[..., 6] / np.maximum(totals[..., 7], 1e-9)}


def word_records(rows: Sequence[_Row]) -> list[_Row]:
    """One record for each object mention of traced captions: what `tokens.jsonl` holds."""
    words = []
    for row in rows:
        if "t_vhd" not in row:
            continue
        for order, mention in enumerate(row["mentions"]):
            token = mention["token"]
            sentence = next((i for i, (start, stop) in enumerate(row["sentences"]) if start <= token < stop), None)
            words.append(
                {
                    "image_id": row["image_id"],
                    "method": row["method"],
                    **mention,
                    "mention": order,
                    "sentence": sentence,
                    "t_vhd": row["t_vhd"][token],
                    "probability": row["probability"][token],
                }
            )
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


def t_vhd_summary(
    words: Sequence[_Row], sentences: Sequence[_Row], top_k: int, seed: int, resamples: int = 1000
) -> _Row:
    """How well T-VHD tells correct words (higher) from hallucinated ones; beside it position and probability alone.

    Every AUROC is P(a correct word scores higher than a hallucinated one), 0.5 is chance; the score of
    `auroc_position` is how early the word comes. `auroc_position_controlled` compares words of the same
    tenth of positions only. Intervals are bootstrapped over images.
    """
    correct = np.array([not w["hallucinated"] for w in words], dtype=bool)
    score = np.array([w["t_vhd"] for w in words], dtype=float)
    position = np.array([w["token"] for w in words], dtype=float)
    strata = (
        np.searchsorted(np.quantile(position, np.linspace(0, 1, POSITION_STRATA + 1)[1:-1]), position)
        if len(words)
        else position
    )
    images = np.array([w["image_id"] for w in words])
    groups = [np.flatnonzero(images == i) for i in np.unique(images)]
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {"auroc": [], "auroc_position_controlled": []}
    for _ in range(resamples if groups else 0):
        pick = np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))])
        for name, value in (
            ("auroc", auroc(score[pick], correct[pick])),
            ("auroc_position_controlled", stratified_auroc(score[pick], correct[pick], strata[pick])),
        ):
            if value is not None:
                drawn[name].append(value)
    return {
        "auroc": auroc(score, correct),
        "auroc_position_controlled": stratified_auroc(score, correct, strata),
        "auroc_position": auroc(-position, correct),
        "auroc_probability": auroc([w["probability"] for w in words], correct),
        "auroc_sentence": auroc([s["t_vhd"] for s in sentences], [not s["hallucinated"] for s in sentences]),
        "interval": {name: np.percentile(v, [2.5, 97.5]).tolist() if v else None for name, v in drawn.items()},
        "mean_hallucinated": float(score[~correct].mean()) if (~correct).any() else None,
        "mean_correct": float(score[correct].mean()) if correct.any() else None,
        "k": top_k,
        "position_strata": POSITION_STRATA,
        "n_hallucinated": int((~correct).sum()),
        "n_correct": int(correct.sum()),
    }


def _cell(value: Interval, signed: bool = False) -> str:
    form = "+.1f" if signed else ".1f"
    return f"{value.value:{form}} [{value.low:{form}}, {value.high:{form}}]"


_COLUMNS = ("chair_s", "chair_i", "recall", "length", "tokens_per_s")


def _table(summary: Summary) -> list[str]:
    """The table of methods, and under it the paired differences from greedy."""
    heads = ["method", "CHAIR_S", "CHAIR_I", "recall", "length", "tokens/s"]
    blocks = [("with 95 % bootstrap intervals over images", summary.methods, False)]
    if summary.versus_greedy:
        blocks.append(("minus greedy on the same images, paired", summary.versus_greedy, True))
    lines: list[str] = []
    for title, content, signed in blocks:
        rows = [heads] + [[name, *(_cell(values[c], signed) for c in _COLUMNS)] for name, values in content.items()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
        lines += ([""] if lines else []) + [title]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
    return lines


def _t_vhd_lines(t: _Row) -> list[str]:
    if t["auroc"] is None:
        return [f"T-VHD: no comparison ({t['n_hallucinated']} hallucinated, {t['n_correct']} correct object words)"]

    def show(name: str) -> str:
        if t[name] is None:
            return "-"
        interval = t["interval"].get(name)
        return f"{t[name]:.2f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")

    return [
        f"T-VHD (k = {t['k']}) of {t['n_hallucinated']} hallucinated and {t['n_correct']} correct object words: "
        f"{t['mean_hallucinated']:.1f} and {t['mean_correct']:.1f}",
        "AUROC, P(correct word > hallucinated word):",
        f"  T-VHD                            {show('auroc')}",
        f"  T-VHD at the same position       {show('auroc_position_controlled')}",
        f"  position alone (earlier = higher) {show('auroc_position')}",
        f"  token probability alone          {show('auroc_probability')}",
        f"  mean T-VHD of the sentence       {show('auroc_sentence')}",
    ]


def write_report(rows: Sequence[_Row], methods: Sequence[str], out: Path, *, top_k: int, seed: int) -> Summary:
    """Write `tokens.jsonl`, `summary.json` and the figures of a study into `out`."""
    order = {name: sorted((r for r in rows if r["method"] == name), key=lambda r: r["image_id"]) for name in methods}
    tables = {name: _counts(found) for name, found in order.items()}
    words, spans = word_records(order["greedy"]), sentence_records(order["greedy"])
    summary = Summary(
        {name: intervals(table, _rates, seed=seed) for name, table in tables.items()},
        {n: differences(t, tables["greedy"], _rates, seed=seed) for n, t in tables.items() if n != "greedy"},
        t_vhd_summary(words, spans, top_k, seed),
        out,
    )
    (out / "tokens.jsonl").write_text("".join(json.dumps(w) + "\n" for w in words), encoding="utf-8")
    (out / "summary.json").write_text(json.dumps(summary.as_json(), indent=2) + "\n", encoding="utf-8")
    maps = np.array([r["vhd"] for r in order["greedy"] if "vhd" in r])
    if len(maps):
        np.save(out / "vhd.npy", maps)
        plots.save(plots.vhd_heatmap(maps.mean(0)), out / "vhd.png")
    plots.save(plots.t_vhd_histograms(words, spans, summary.t_vhd), out / "t_vhd.png")
    plots.save(plots.chair_against_recall(summary.methods), out / "chair_recall.png")
    return summary
