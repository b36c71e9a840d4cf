"""`interp ablate`: a set of heads edited, against as many random ones: hallucination, recall, POPE, log-likelihood.

Captions are scored as in a study.  The log-likelihood is that of the unedited model's own captions, for each token,
teacher-forced under the edit: it tells how far an edit breaks the model, whatever it hallucinates.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp import plots
from interp.data import Sample
from interp.evaluate.bootstrap import Interval, differences, intervals
from interp.experiments.attribution import CausalConfig, causal
from interp.experiments.captions import StudyConfig, study
from interp.experiments.compared import BASELINE, check_methods, described, least_rows
from interp.experiments.config import HUNDRED, DataConfig, at_least
from interp.experiments.engine import Job, Run, require_rows
from interp.experiments.manifest import content_digest
from interp.experiments.pope import PopeConfig, ask
from interp.experiments.records import CaptionRecord, ItemId, LikelihoodRecord, read_records
from interp.experiments.report import Summary, aligned, cell, common_images, summarised
from interp.experiments.setup import Setup
from interp.folder import write_text
from interp.interventions import EditHeads, Method, parse_method
from interp.models import LVLM, Inputs, NonFiniteLogitsError

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

    data: DataConfig = HUNDRED
    methods: str = "greedy"
    """Further methods for the table."""
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
    """Images that are asked about, the first ones (testbed data, adversarial questions); 0 for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, controls=self.controls, pope_limit=self.pope_limit)
        if self.operating_curve:
            raise ValueError("an ablation draws no operating curve; give the edit to interp study --operating-curve")
        if self.ranking is None and not self.data.data.startswith("testbed:"):
            raise ValueError(
                "expected ranking=FILE: rank the heads on other images first (interp causal --out DIR), "
                "then pass DIR/heads.npz"
            )
        if self.ranking is None and self.data.split == "dev":
            raise ValueError("heads would be ranked on the images of the study; pass ranking=FILE, or another split")
        parse_method(f"edit:heads={self.heads}:op={self.op}:steps={self.steps}:by={self.by}")  # refused in one line

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
    n_images: int
    n_asked: int
    empty: dict[str, int]
    out: Path
    failures: int = 0

    def __str__(self) -> str:
        columns = [c for c in MEASURES if c in self.values[BASELINE]]
        rows = [["", *(MEASURES[c] for c in columns), "empty captions"]]
        for name in (n for n in self.values if n not in self.controls):
            rows.append([name, *(_shown(self.values[name], c) for c in columns), str(self.empty[name])])
        if self.controls:
            row = [f"{len(self.controls)} random sets, range"]
            for c in columns:
                each = [self.values[name][c].value for name in self.controls]
                row.append(f"{np.mean(each):.{digits(c)}f} [{min(each):.{digits(c)}f}, {max(each):.{digits(c)}f}]")
            counts = [self.empty[name] for name in self.controls]
            rows.append([*row, f"{min(counts)} to {max(counts)}"])
        rows += [["", *("" for _ in columns), ""], ["minus greedy, paired", *("" for _ in columns), ""]]
        for name, values in self.versus_greedy.items():
            if name not in self.controls:
                rows.append([name, *(_shown(values, c, signed=True) for c in columns), ""])
        shown = ", ".join(self.heads[:12]) + (", ..." if len(self.heads) > 12 else "")
        of = f"{self.n_images} images" + (f"; POPE about {self.n_asked} of them" if self.n_asked else "")
        lines = [f"{len(self.heads)} heads: {shown}", of, "", *aligned(rows), ""]
        if self.failures:
            lines += [f"{self.failures} items failed; failures.jsonl there and in captions/ and pope/ says which"]
        return "\n".join([*lines, f"results: {self.out}"])


def digits(measure: str) -> int:
    """Decimals of a measure in the table."""
    return 3 if measure == "log_likelihood" else 1


def _shown(values: Mapping[str, Interval], measure: str, signed: bool = False) -> str:
    """A cell; a method that is no edit has no log-likelihood."""
    return cell(values[measure], signed, digits(measure)) if measure in values else "-"


def _log_p(model: LVLM, inputs: Inputs, captions: Sequence[Tensor], edit: EditHeads | None) -> list[tuple[float, int]]:
    """The log-likelihood of each caption under an edit, and its number of tokens."""
    longest = max(len(c) for c in captions)
    if not longest:
        return [(0.0, 0)] * len(captions)
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
    if not log_p.isfinite().all():
        raise NonFiniteLogitsError("the caption's tokens have no finite likelihood under the edit; use a weaker one")
    return [(float(row.sum()), len(c)) for row, c in zip(log_p, captions, strict=True)]


@dataclass(frozen=True)
class _Captioned:
    """A sample with the tokens that the unedited model wrote about it."""

    sample: Sample
    tokens: list[int]


def _captioned(load: Callable[[ItemId], Sample], tokens: Mapping[ItemId, list[int]], item: ItemId) -> _Captioned:
    return _Captioned(load(item), tokens[item])


def likelihood_job(
    setup: Setup, prompt: str, captions: Mapping[ItemId, list[int]], edits: Mapping[str, EditHeads]
) -> Job[LikelihoodRecord]:
    """The log-likelihood of each image's caption without an edit (greedy) and under each."""
    model = setup.model

    def work(name: str, samples: Sequence[_Captioned]) -> list[LikelihoodRecord]:
        inputs = model.inputs([s.sample.image for s in samples], prompt)
        written = [torch.tensor(s.tokens, dtype=torch.long, device=model.device) for s in samples]
        found = zip(samples, _log_p(model, inputs, written, edits.get(name)), strict=True)
        return [LikelihoodRecord(s.sample.image_id, name, log_p, n) for s, (log_p, n) in found]

    load = partial(_captioned, setup.data.load, captions)
    names = [BASELINE, *edits]
    return Job("likelihood", LikelihoodRecord, list(captions), names, load, work, "caption", least_rows(edits))


_Measured = tuple[dict[str, Interval], dict[str, Interval]]
"""A measure by method, and its difference from greedy."""


def _likelihoods(records: Sequence[LikelihoodRecord], image_ids: Sequence[ItemId], seed: int) -> _Measured:
    """The log-likelihood of a token, over these images."""
    by = {(r.method, r.image_id): (r.log_p, r.n_tokens) for r in records}
    names = dict.fromkeys(r.method for r in records)
    tables = {name: np.array([by[name, i] for i in image_ids], dtype=float) for name in names}

    def rate(totals: np.ndarray, _: int) -> dict[str, Any]:
        return {"mean": totals[..., 0] / np.maximum(totals[..., 1], 1)}

    values = {name: intervals(table, rate, seed=seed)["mean"] for name, table in tables.items()}
    others = {name: table for name, table in tables.items() if name != BASELINE}
    return values, {n: differences(t, tables[BASELINE], rate, seed=seed)["mean"] for n, t in others.items()}


def _ranked(setup: Setup, config: AblateConfig, out: Path) -> str:
    """Rank the heads on the testbed's dev split; the file."""
    dev = DataConfig(config.data.data, "dev", limit=50, seed=config.data.seed, prompt=config.data.prompt)
    run = replace(CausalConfig.run, workers=config.run.workers, out=str(out / "ranking"))
    causal(setup.on(dev), CausalConfig(config.model, dev, run, config.max_new_tokens, exact=False))
    return str(out / "ranking" / "heads.npz")


def _check(setup: Setup, config: AblateConfig) -> None:
    """ValueError, before anything runs, for what is known to be wrong without a ranking."""
    setup.require_truth()
    edits = config.named(config.ranking or "", 1)
    require_rows(least_rows(edits), "image", len(setup.data.image_ids), config.run.batch_size)
    if config.ranking or not (config.heads.startswith(("top", "bottom")) or config.op == "mean"):
        check_methods(setup.model, {"edit": next(iter(edits.values()))})
    check_methods(setup.model, config.compared)


def run_ablate(config: AblateConfig) -> Ablation | None:
    """Rank the heads if need be, then measure the edit and its controls, or go on with a run that was interrupted.

    Under a launcher of several processes the first one returns the result, the others None when all is written.
    """
    setup = Setup.of(config)
    _check(setup, config)
    own = {f.name for f in fields(AblateConfig)} - {"model", "data", "run", "methods", "ranking"}
    files = {"ranking": Path(config.ranking)} if config.ranking else {}
    settings = {name: getattr(config, name) for name in sorted(own)} | {"methods": described(config.compared)}
    manifest = setup.manifest("ablate", config, files, prompt=config.data.prompt, **settings)
    out = setup.folder("ablate-", config, manifest)
    with Run.opened(out, manifest, setup.shard) as run:
        ranking = config.ranking or _ranked(setup, config, out)
        edit, *_ = config.named(ranking, 1).values()
        heads = edit.chosen(setup.model)
        edits = config.named(ranking, len(heads))
        return _measured(setup, config, run, ranking, edits, tuple(map(str, heads)))


def _measured(
    setup: Setup, config: AblateConfig, run: Run, ranking: str, edits: dict[str, EditHeads], heads: tuple[str, ...]
) -> Ablation | None:
    """Captions, their likelihoods and answers about the same images, with every edit."""
    methods: dict[str, Method] = {**config.compared, **edits}
    shared: dict[str, Any] = {f.name: getattr(config, f.name) for f in fields(StudyConfig)}
    shared["run"] = replace(config.run, out=str(run.out / "captions"))
    summary = study(setup, StudyConfig(**shared), methods)
    records = read_records(run.out / "captions" / "captions.jsonl", CaptionRecord)
    tokens = {r.image_id: r.tokens for r in records if r.method == BASELINE}
    tokens = {i: tokens[i] for i in common_images(records, list(methods))}
    likely = run.made(likelihood_job(setup, config.data.prompt, tokens, edits), config.run)
    asked = None
    if config.pope_limit and setup.data.questions is not None:
        few = replace(setup, data=setup.data.first(config.pope_limit))
        answers = replace(config.run, out=str(run.out / "pope"))
        asked = ask(few, PopeConfig(config.model, config.data, answers, config.methods, config.ranking), methods)
    if summary is None or likely is None:
        return None
    images = common_images(likely, [BASELINE, *edits])
    if len(images) < len(summary.image_ids):
        options: Any = {"top_k": summary.t_vhd.k, "seed": config.data.seed}
        among = summarised(records, list(methods), summary.out, **options, among=images)
        summary = replace(among, failures=summary.failures)
    measured = {"log_likelihood": _likelihoods(likely, images, config.data.seed)}
    if asked is not None:
        each = ({n: row["accuracy"] for n, row in of.items()} for of in (asked.intervals, asked.versus_greedy))
        absolute, relative = each
        measured["pope_accuracy"] = absolute, relative
    values, versus = _joined(summary, measured)
    label, *controls = edits
    failures = summary.failures + len(run.failures) + (asked.failures if asked else 0)
    n_asked = asked.n_images if asked else 0
    counts = (len(images), n_asked, summary.empty)
    ablation = Ablation(values, versus, heads, label, tuple(controls), *counts, run.out, failures)
    _write(ablation, ranking)
    return ablation


def _joined(summary: Summary, measured: Mapping[str, _Measured]) -> tuple[dict[str, dict[str, Interval]], ...]:
    """The measures of the captions with the others, by method; and their differences from greedy."""
    values = {name: dict(v) for name, v in summary.methods.items()}
    versus = {name: dict(v) for name, v in summary.versus_greedy.items()}
    for measure, parts in measured.items():
        for rows, new in zip((values, versus), parts, strict=True):
            for name, value in new.items():
                rows[name][measure] = value
    return values, versus


def _write(ablation: Ablation, ranking: str) -> None:
    """`ablation.json` and `ablation.png`."""

    def plain(values: dict[str, dict[str, Interval]]) -> dict[str, Any]:
        return {n: {c: vars(v) for c, v in row.items() if c in MEASURES} for n, row in values.items()}

    found = {
        "heads": ablation.heads,
        "ranking": f"sha256:{content_digest(Path(ranking))}",
        "n_images": ablation.n_images,
        "n_images_asked_about": ablation.n_asked,
        "empty_captions": ablation.empty,
        "values": plain(ablation.values),
        "versus_greedy": plain(ablation.versus_greedy),
    }
    write_text(ablation.out / "ablation.json", json.dumps(found, indent=2) + "\n")
    plots.draw_ablation(ablation.out)
