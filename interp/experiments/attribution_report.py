"""From the records of `interp causal` to its maps, table and figures."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from interp import plots
from interp.evaluate.bootstrap import Interval, differences, intervals
from interp.experiments.records import EffectRecord, FailureRecord, HeadsRecord
from interp.folder import write_arrays, write_text
from interp.metrics.ranking import spearman

Map = Float[np.ndarray, "layer head"]
TOP_SHARE = 0.1


@dataclass(frozen=True)
class CausalReport:
    """Maps `[layer, head]` averaged over words or images, and what was found with them.

    Contributions are in nats of log-probability, positive where the head pushes the word.  `agreement` is Spearman's
    correlation of attribution patching with the exact value over the heads of one word, averaged over words: for all
    heads, then layer by layer; None without exact values.  `alike` compares rankings: Spearman over heads, and the
    share that their top tenths have in common.  `blind` tells how often the text alone names the object.
    `shared` counts words whose first token begins several objects' names, which direct logits do not tell apart.
    """

    maps: dict[str, Map]
    n_words: dict[str, int]
    agreement: list[float | None] | None
    alike: dict[str, tuple[float | None, float]]
    blind: dict[str, Interval]
    rises: float
    shared: dict[str, int]
    out: Path
    n_images: int
    empty: int = 0
    failures: int = 0

    def as_json(self) -> dict[str, Any]:
        """The content of `causal.json`."""
        return {
            "n_words": self.n_words,
            "agreement_with_exact": None if self.agreement is None else dict(_named(self.agreement)),
            "rankings_alike": {k: {"spearman": r, "top_tenth_shared": s} for k, (r, s) in self.alike.items()},
            "named_without_image_percent": {k: vars(v) for k, v in self.blind.items()},
            "first_tokens_shared": self.shared,
            "proposition_1_cosine_rises_percent": self.rises,
        }

    def __str__(self) -> str:
        lines = [f"heads and words: {self.n_words['hallucinated']} hallucinated, {self.n_words['correct']} correct"]
        lines[0] += f", {self.n_images} images, {self.empty} empty captions"
        lines += ["", "the text alone goes on to name the same object (language-bias probe)"]
        for name, v in self.blind.items():
            lines.append(f"  {name:<28}{v.value:6.1f} %  [{v.low:.1f}, {v.high:.1f}]")
        if self.agreement is not None:
            lines += ["", "attribution patching against exact silencing: Spearman over heads, mean over words"]
            shown = (f"{name} {'-' if r is None else format(r, '.2f')}" for name, r in _named(self.agreement))
            lines.append("  " + "  ".join(shown))
        lines += ["", f"{'rankings of heads':<48}Spearman  top {100 * TOP_SHARE:g} % shared"]
        for name, (r, shared) in self.alike.items():
            cells = f"{'-':>8}" if r is None else f"{r:8.2f}{100 * shared:13.0f} %"
            lines.append(f"  {name:<46}{cells}")
        lines += ["", f"{'heads that push most':<24}contribution  direct  writes the named object  VHD"]
        for group in (g for g in ("hallucinated", "correct") if self.n_words[g]):
            lines.append(f"{group} words")
            for layer, head in _top(self.maps[f"push_{group}"], 5):
                own = (self.maps[f"{name}_{group}"][layer, head] for name in ("push", "direct", "writes_it"))
                push, direct, writes = own
                value = self.maps["vhd"][layer, head]
                lines.append(f"  L{layer}H{head:<19}{push:+12.3f}{direct:+8.2f}{100 * writes:20.0f} %{value:10.2f}")
        if self.shared:
            told = ", ".join(f"{names} {n}" for names, n in self.shared.items())
            lines += [
                "",
                f"words that begin as several objects do (direct does not tell those apart): {told}",
            ]
        lines += [
            "",
            f"Proposition 1: the cosine rises in {self.rises:.1f} % of heads and images (alpha 2)",
            "",
            *([f"{self.failures} images failed; see failures.jsonl"] if self.failures else []),
            f"results: {self.out}",
        ]
        return "\n".join(lines)


def _named(agreement: Sequence[float | None]) -> list[tuple[str, float | None]]:
    return [("all heads" if i == 0 else f"layer {i - 1}", r) for i, r in enumerate(agreement)]


def _top(values: Map, n: int) -> list[tuple[int, int]]:
    order = np.argsort(-values, axis=None, kind="stable")[:n]
    return [(int(i) // values.shape[1], int(i) % values.shape[1]) for i in order]


def _mean(words: Sequence[EffectRecord], read: Callable[[EffectRecord], Any], shape: tuple[int, ...]) -> np.ndarray:
    return np.mean([read(w) for w in words], 0) if words else np.full(shape, np.nan)


def _agreement(words: Sequence[EffectRecord], n_layers: int) -> list[float | None]:
    """Over all heads, then by layer: the mean over words, in the stream with the image."""
    found: list[float | None] = []
    for part in (slice(None), *(slice(i, i + 1) for i in range(n_layers))):
        each = [spearman(np.array(w.patched)[0, part], np.array(w.exact)[0, part]) for w in words]
        known = [r for r in each if r is not None]
        found.append(float(np.mean(known)) if known else None)
    return found


def _blind(records: Sequence[HeadsRecord], seed: int) -> dict[str, Interval]:
    """How often the text alone names hallucinated and correct objects, and the difference; what there are words of."""
    counts = np.zeros((len(records), 4))
    for i, record in enumerate(records):
        for w in record.words:
            at = 0 if w.hallucinated else 2
            counts[i, at : at + 2] += (w.blind, 1)

    def rates(at: int) -> Callable[[np.ndarray, int], dict[str, np.ndarray]]:
        return lambda totals, _: {"rate": 100 * totals[..., at] / np.maximum(totals[..., at + 1], 1)}

    found = {}
    for at, group in ((0, "hallucinated"), (2, "correct")):
        if counts[:, at + 1].any():
            found[f"before {group} words"] = intervals(counts, rates(at), seed=seed)["rate"]
    if len(found) == 2:
        found["difference"] = differences(counts, counts[:, [2, 3, 0, 1]], rates(0), seed=seed)["rate"]
    return found


def maps_of(records: Sequence[HeadsRecord]) -> dict[str, np.ndarray]:
    """Every map `[layer, head]`, and `mean` `[layer, head, d_head]`; `nan` where there were no such words."""
    maps: dict[str, np.ndarray] = {
        name: np.mean([getattr(r, name) for r in records], 0) for name in ("vhd", "image_mass", "mean")
    }
    shape = maps["vhd"].shape
    before, after = np.mean([r.cosine for r in records], 0)
    maps |= {"cosine_before": before, "cosine_after": after}
    words = [w for r in records for w in r.words]
    best = "exact" if _has_exact(words) else "patched"
    for group, wrong in (("hallucinated", True), ("correct", False)):
        some = [w for w in words if w.hallucinated == wrong]
        maps[f"push_{group}"] = _mean(some, lambda w: np.array(getattr(w, best))[0], shape)
        maps[f"image_push_{group}"] = _mean(some, lambda w: np.subtract(*np.array(getattr(w, best))), shape)
        maps[f"patched_{group}"] = _mean(some, lambda w: np.array(w.patched)[0], shape)
        maps[f"direct_{group}"] = _mean(some, lambda w: np.array(w.direct), shape)
        maps[f"writes_it_{group}"] = _mean(some, lambda w: np.array(w.writes_it, dtype=float), shape)
    maps["causal"] = maps["push_correct"] - maps["push_hallucinated"]
    return maps


def _alike(maps: dict[str, np.ndarray]) -> dict[str, tuple[float | None, float]]:
    """How alike rankings are."""
    found = {}
    pairs = [("vhd", "image_mass")]
    pairs += [(a, b) for a in ("vhd", "image_mass") for b in ("push_correct", "push_hallucinated", "causal")]
    pairs += [("push_correct", "push_hallucinated"), ("direct_correct", "push_correct")]
    for a, b in pairs:
        n = max(1, round(TOP_SHARE * maps[a].size))
        shared = len({*_top(maps[a], n)} & {*_top(maps[b], n)}) / n
        found[f"{a} and {b}"] = (spearman(maps[a], maps[b]), shared)
    return found


def _has_exact(words: Sequence[EffectRecord]) -> bool:
    """Whether heads were silenced; a run does it for all words or none."""
    return bool(words) and words[0].exact is not None


def write_report(
    records: Sequence[HeadsRecord], out: Path, seed: int = 0, failures: Sequence[FailureRecord] = ()
) -> CausalReport:
    """Write `heads.npz`, `causal.json` and the figures into `out`; ValueError if no image came through."""
    if not records:
        raise ValueError(f"no image came through; {out / 'failures.jsonl'} says why")
    maps = maps_of(records)
    words = [w for r in records for w in r.words]
    wrong = sum(w.hallucinated for w in words)
    cosine = np.array([r.cosine for r in records])
    exact = _has_exact(words)
    report = CausalReport(
        maps=maps,
        n_words={"hallucinated": wrong, "correct": len(words) - wrong},
        agreement=_agreement(words, maps["vhd"].shape[0]) if exact else None,
        alike=_alike(maps),
        blind=_blind(records, seed),
        rises=100 * float((cosine[:, 1] > cosine[:, 0]).mean()),
        shared=dict(Counter("/".join(w.begins_as) for w in words if len(w.begins_as) > 1)),
        out=out,
        n_images=len(records),
        empty=sum(not r.caption for r in records),
        failures=len(failures),
    )
    write_arrays(out / "heads.npz", **{name: m.astype(np.float32) for name, m in maps.items()})
    write_text(out / "causal.json", json.dumps(report.as_json(), indent=2) + "\n")
    if exact:
        predicted = np.array([np.array(w.patched)[0] for w in words]).ravel()
        truth = np.array([np.array(w.exact)[0] for w in words]).ravel()
        write_arrays(out / "patching.npz", predicted=predicted, exact=truth)
    plots.draw_causal(out)
    return report
