"""`interp ablate`: a set of heads edited, against as many random ones: hallucination, recall, POPE, log-likelihood.

Captions are scored as in a study.  The log-likelihood is that of the unedited model's own captions, for each token,
teacher-forced under the edit: it tells how far an edit breaks the model, whatever it hallucinates.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from interp import plots
from interp.data import Data, open_data
from interp.evaluate.bootstrap import Interval, differences, intervals
from interp.evaluate.objects import ObjectParser
from interp.experiments.attribution import CausalConfig, run_causal
from interp.experiments.captions import BASELINE, StudyConfig, run_study
from interp.experiments.engine import Shard
from interp.experiments.pope import PopeConfig, run_pope
from interp.experiments.records import Manifest, Records
from interp.experiments.report import aligned, cell
from interp.interventions import EditHeads
from interp.models import LVLM

MEASURES = {
    "chair_s": "CHAIR_S (%)",
    "chair_i": "CHAIR_I (%)",
    "recall": "recall (%)",
    "pope_accuracy": "POPE accuracy (%)",
    "log_likelihood": "log p of a token (nats)",
}


@dataclass(frozen=True)
class AblateConfig(StudyConfig):
    """Settings of `interp ablate`: those of a study, the edit, and its controls."""

    methods: str = "greedy"
    """Further methods for the table."""
    limit: int | None = 100
    """How many images, drawn by seed from the sorted ids; None for all."""
    heads: str = "top10%"
    """Labels such as L3H2+L5H0, or top10%, bottom10%, top5, random10%."""
    by: str = "vhd"
    """The map of the ranking that top and bottom follow: vhd, image_mass, causal, push_hallucinated, ..."""
    op: str = "zero"
    """scale, zero, mean, resample or image_free."""
    factor: float = 2.0
    """Factor of op=scale."""
    steps: str = "all"
    """Positions that are edited: all, prompt or generated."""
    ranking: str | None = None
    """heads.npz of `interp causal`; on testbed data written first, from 50 images of dev, if None."""
    controls: int = 5
    """Sets of as many random heads."""
    pope_limit: int = 50
    """Images that are asked about (testbed data, adversarial questions); 0 for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.controls < 0 or self.pope_limit < 0:
            raise ValueError(f"controls and pope_limit are at least 0, got {self.controls} and {self.pope_limit}")
        if self.ranking is None and not self.data.startswith("testbed:"):
            raise ValueError(
                "expected ranking=FILE: rank the heads on other images first (interp causal --out DIR), "
                "then pass DIR/heads.npz"
            )
        if self.ranking is None and self.split == "dev":
            raise ValueError("heads would be ranked on the images of the study; pass ranking=FILE, or another split")
        EditHeads(heads=self.heads, op=self.op, steps=self.steps, by=self.by)

    def named(self, ranking: str, n_heads: int) -> dict[str, EditHeads]:
        """The edit and its controls, by name."""
        shared: dict[str, Any] = {"op": self.op, "factor": self.factor, "steps": self.steps, "ranking": ranking}
        label = f"{self.op} {self.heads}" + (f" by {self.by}" if self.heads.startswith(("top", "bottom")) else "")
        found = {label: EditHeads(heads=self.heads, by=self.by, **shared)}
        for seed in range(self.controls):
            found[f"{self.op} random seed={seed}"] = EditHeads(heads=f"random{n_heads}", seed=seed, **shared)
        return found


@dataclass(frozen=True)
class Ablation:
    """Every measure of greedy, of the edit and of its controls, with 95 % intervals over images."""

    values: dict[str, dict[str, Interval]]
    versus_greedy: dict[str, dict[str, Interval]]
    heads: tuple[str, ...]
    edit: str
    controls: tuple[str, ...]
    out: Path

    def __str__(self) -> str:
        columns = [c for c in MEASURES if c in self.values[BASELINE]]
        rows = [["", *(MEASURES[c] for c in columns)]]
        for name in (n for n in self.values if n not in self.controls):
            rows.append([name, *(_shown(self.values[name], c) for c in columns)])
        if self.controls:
            row = [f"{len(self.controls)} random sets, range"]
            for c in columns:
                each = [self.values[name][c].value for name in self.controls]
                row.append(f"{np.mean(each):.{digits(c)}f} [{min(each):.{digits(c)}f}, {max(each):.{digits(c)}f}]")
            rows.append(row)
        rows += [["", *("" for _ in columns)], ["minus greedy, paired", *("" for _ in columns)]]
        for name, values in self.versus_greedy.items():
            if name not in self.controls:
                rows.append([name, *(_shown(values, c, signed=True) for c in columns)])
        shown = ", ".join(self.heads[:12]) + (", ..." if len(self.heads) > 12 else "")
        return "\n".join([f"{len(self.heads)} heads: {shown}", "", *aligned(rows), "", f"results: {self.out}"])


def digits(measure: str) -> int:
    """Decimals of a measure in the table."""
    return 3 if measure == "log_likelihood" else 1


def _shown(values: Mapping[str, Interval], measure: str, signed: bool = False) -> str:
    """A cell; a method that is no edit has no log-likelihood."""
    return cell(values[measure], signed, digits(measure)) if measure in values else "-"


def _log_p(model: LVLM, inputs: Any, captions: Sequence[Tensor], edit: EditHeads | None) -> list[tuple[float, int]]:
    """The log-likelihood of each caption under an edit, and its number of tokens."""
    longest = max(len(c) for c in captions)
    whole = inputs.extended(captions)

    @torch.no_grad()
    def run() -> Tensor:
        return model.hf(**whole.kwargs(), use_cache=False, logits_to_keep=longest + 1).logits[:, :-1]

    if edit is None:
        logits = run()
    else:
        with edit.steer(model, inputs):
            logits = run()
    ids, written = whole.input_ids[:, -longest:, None], whole.attention_mask[:, -longest:].bool()
    log_p = logits.float().log_softmax(-1).gather(-1, ids.to(logits.device))[..., 0].masked_fill(~written, 0)
    return [(float(row.sum()), len(c)) for row, c in zip(log_p, captions, strict=True)]


def _batches(data: Data, size: int) -> Iterator[tuple[int, ...]]:
    for start in range(0, len(data.image_ids), size):
        yield data.image_ids[start : start + size]


def _likelihoods(
    model: LVLM, data: Data, config: AblateConfig, methods: Mapping[str, EditHeads | None], out: Path
) -> Records:
    """Log-likelihood of greedy's captions under every edit."""
    records = Records(out / "likelihood.jsonl")
    done = {(r["image_id"], r["method"]) for r in records.rows}
    for ids in tqdm(list(_batches(data, config.batch_size)), desc="log-likelihood", unit="batch"):
        if all((i, m) in done for i in ids for m in methods):
            continue
        inputs = model.inputs([data.load(i).image for i in ids], config.prompt)
        written = model.generate(inputs, max_new_tokens=config.max_new_tokens).tokens
        captions = [t if len(t) else inputs.input_ids[row, -1:] for row, t in enumerate(written)]
        for name, edit in methods.items():
            pairs = zip(ids, _log_p(model, inputs, captions, edit), strict=True)
            new = [{"image_id": i, "method": name, "log_p": log_p, "n_tokens": n} for i, (log_p, n) in pairs]
            records.append(row for row in new if (row["image_id"], name) not in done)
    return records


def _measured(records: Records, seed: int) -> tuple[dict[str, Interval], dict[str, Interval]]:
    """The log-likelihood of a token by method, and its difference from greedy."""
    sums: dict[str, dict[int, tuple[float, float]]] = {}
    for row in records.rows:
        sums.setdefault(row["method"], {})[row["image_id"]] = (row["log_p"], row["n_tokens"])
    tables = {name: np.array([of[i] for i in sorted(of)], dtype=float) for name, of in sums.items()}

    def rate(totals: np.ndarray, _: int) -> dict[str, Any]:
        return {"mean": totals[..., 0] / totals[..., 1]}

    values = {name: intervals(table, rate, seed=seed)["mean"] for name, table in tables.items()}
    others = {name: table for name, table in tables.items() if name != BASELINE}
    return values, {n: differences(t, tables[BASELINE], rate, seed=seed)["mean"] for n, t in others.items()}


def _ranked(config: AblateConfig, out: Path) -> Path:
    """Rank the heads on the testbed's dev split."""
    same = ("model", "data", "prompt", "max_new_tokens", "device", "dtype")
    shared: dict[str, Any] = {name: getattr(config, name) for name in same}
    return run_causal(CausalConfig(split="dev", exact=False, out=str(out / "ranking"), **shared)).out


def run_ablate(config: AblateConfig) -> Ablation:
    """Rank the heads if need be, then measure the edit and its controls, or go on with a run that was interrupted.

    Ranking and measures run in one process; give a sweep or a study to several.
    """
    if Shard.current(config.device).world > 1:
        raise ValueError("interp ablate runs in one process; start interp study or interp sweep with the launcher")
    model = config.load(Shard())
    data = open_data(config.data, config.split, ObjectParser.coco()).limited(config.limit, config.seed)
    settings = {k: v for k, v in vars(config).items() if k not in ("out", "device")}
    manifest = Manifest.of(**settings, weights=model.fingerprint, image_ids=list(data.image_ids))
    out = Path(config.out or Path("runs") / f"ablate-{Path(config.model).name}-{manifest.digest}")
    manifest.claim(out)
    ranking = config.ranking or str(_ranked(config, out) / "heads.npz")
    edit = EditHeads(heads=config.heads, op=config.op, ranking=ranking, by=config.by)
    edits = config.named(ranking, len(edit.chosen(model)))
    shared: dict[str, Any] = {f.name: getattr(config, f.name) for f in fields(StudyConfig)}
    shared["out"] = str(out / "captions")
    summary = run_study(StudyConfig(**shared), edits)
    values = {name: dict(v) for name, v in summary.methods.items()}
    versus = {name: dict(v) for name, v in summary.versus_greedy.items()}
    likely = _measured(_likelihoods(model, data, config, {BASELINE: None, **edits}, out), config.seed)
    found = {"log_likelihood": likely}
    if config.pope_limit and data.questions is not None:
        shared |= {"limit": config.pope_limit, "out": str(out / "pope")}
        asked = run_pope(PopeConfig(**shared), edits)
        assert asked is not None
        absolute, relative = asked.intervals, asked.versus_greedy
        absolute, relative = ({n: row["accuracy"] for n, row in of.items()} for of in (absolute, relative))
        found["pope_accuracy"] = absolute, relative
    for measure, (absolute, relative) in found.items():
        for rows, new in ((values, absolute), (versus, relative)):
            for name, value in new.items():
                rows[name][measure] = value
    label, *controls = edits
    heads = tuple(str(h) for h in edit.chosen(model))
    ablation = Ablation(values, versus, heads, label, tuple(controls), out)
    _write(ablation, ranking)
    return ablation


def _write(ablation: Ablation, ranking: str) -> None:
    """`ablation.json` and `ablation.png`."""

    def plain(values: dict[str, dict[str, Interval]]) -> dict[str, Any]:
        return {n: {c: vars(v) for c, v in row.items() if c in MEASURES} for n, row in values.items()}

    found = {
        "heads": ablation.heads,
        "ranking": ranking,
        "values": plain(ablation.values),
        "versus_greedy": plain(ablation.versus_greedy),
    }
    (ablation.out / "ablation.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    plots.draw_ablation(ablation.out)
