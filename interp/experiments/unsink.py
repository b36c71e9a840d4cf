"""`interp unsink`: what a model loses where its sink is masked, drained or penalised, and which heads rest on it.

Sinks: Gu et al., arXiv 2410.10781; the penalty is VASparse's (arXiv 2501.06553, eq. 7), whose weights are the attention
that each key has received so far.  Controls do the same to another token of the sequence.  Captions and CHAIR without
the sink: `interp study --methods interp.interventions.methods.sink_edit:SinkEdit:op=mask`.
"""

import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import spearmanr
from torch import Tensor

from interp import plots
from interp.english import digest
from interp.experiments.config import ExperimentConfig, ModelConfig, at_least
from interp.experiments.manifest import Manifest
from interp.experiments.setup import open_model
from interp.experiments.sinks import Estimate, SinksConfig, losses, text_of
from interp.folder import locked, write_arrays, write_text
from interp.interventions.primitives.kv_cache import received_so_far
from interp.metrics.selection import penalised
from interp.models import LVLM, Inputs, read, run_with_edits
from interp.models.sites import SiteEdit
from interp.trace.sinks import sequences

BETAS = (0.1, 0.25, 0.5, 1.0)
OTHER = 4
"""Place of the control token, from 0."""


@dataclass(frozen=True)
class UnsinkConfig:
    """Settings of `interp unsink`; vision-language models run without a picture."""

    model: ModelConfig = ExperimentConfig.model
    n: int = 8
    """Sequences of natural text."""
    length: int = 64
    """Tokens of a sequence."""
    seed: int = 0
    """Seed of where the sequences are taken from."""
    text: str | None = None
    """File with natural text, or python for Python's reference manual; a few paragraphs if None."""
    batch_size: int = 4
    """Sequences at once."""
    out: str | None = None
    """Folder for unsink.json and the figure."""

    def __post_init__(self) -> None:
        at_least(2, n=self.n)
        at_least(OTHER + 2, length=self.length)
        at_least(1, batch_size=self.batch_size)
        at_least(0, seed=self.seed)


def _hidden(place: int) -> SiteEdit:
    def edit(_: int, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[..., place + 1 :, place] = -torch.inf  # the token itself goes on seeing itself
        return scores

    return edit


def _drained(place: int) -> SiteEdit:
    def edit(_: int, pattern: Tensor) -> Tensor:
        pattern = pattern.clone()
        pattern[..., place + 1 :, place] = 0  # the rest of the attention stays as it is
        return pattern

    return edit


def _emptied(place: int) -> SiteEdit:
    def edit(_: int, value: Tensor) -> Tensor:
        value = value.clone()
        value[:, place] = 0
        return value

    return edit


def penalty(beta: float) -> SiteEdit:
    """VASparse's penalty (eq. 7) on scores `[batch, head, query, key]`, in one pass over a whole text."""

    def edit(_: int, scores: Tensor) -> Tensor:
        visible = scores.isfinite()
        received = received_so_far(None, scores.float().softmax(-1))
        weights = received.masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num(0)
        return penalised(scores.float(), weights, beta).to(scores.dtype)

    return edit


def conditions() -> dict[str, dict[str, SiteEdit]]:
    """What is done to the attention, by name.

    Masked: later queries do not see the token.  Drained: they see it, and what they would read from it is left out.
    Without value: the token does not read its own value either, so that it cannot become what it was.
    """
    found: dict[str, dict[str, SiteEdit]] = {"as it is": {}, "sink masked": {"scores": _hidden(0)}}
    found |= {"another masked": {"scores": _hidden(OTHER)}, "sink drained": {"pattern": _drained(0)}}
    found |= {"another drained": {"pattern": _drained(OTHER)}, "sink without value": {"v": _emptied(0)}}
    return found | {f"beta {beta:g}": {"scores": penalty(beta)} for beta in BETAS}


@dataclass(frozen=True)
class Condition:
    """Loss in nats a token, the difference from the model as it is (paired), and what the first token receives."""

    name: str
    loss: Estimate
    difference: Estimate
    first_mass: float


@dataclass(frozen=True)
class UnsinkReport:
    """What `interp unsink` found; `mass` and `adds` are means over queries after the first.

    `mass` is what a head's queries give to the first token, `adds` the norm of what it adds to the residual stream over
    the mean head's of its layer, `rho` Spearman's correlation of the two over heads, with the mean over layers of that
    within a layer.
    """

    config: UnsinkConfig
    model: str
    conditions: tuple[Condition, ...]
    mass: Float[np.ndarray, "layer head"]
    adds: Float[np.ndarray, "layer head"]

    @property
    def rho(self) -> tuple[float, float]:
        """Over all heads, and within layers."""
        whole: Any = spearmanr(self.mass.ravel(), self.adds.ravel())
        within: list[Any] = [spearmanr(m, a) for m, a in zip(self.mass, self.adds, strict=True)]
        return float(whole.statistic), float(np.nanmean([found.statistic for found in within]))

    def __str__(self) -> str:
        c = self.config
        lines = [f"{self.model}: {c.n} sequences of {c.length} tokens, natural text; +- standard errors over sequences"]
        lines.append(f"{'':<20}loss (nats)       more than as it is    the first token gets")
        for x in self.conditions:
            lines.append(
                f"{x.name:<20}{x.loss.mean:.3f} +- {x.loss.error:.3f}{x.difference.mean:>+12.3f} +- "
                f"{x.difference.error:.3f}{100 * x.first_mass:>19.1f} %"
            )
        rest = self.mass > 0.5
        added = [f"{self.adds[some].mean():.2f}" if some.any() else "nothing" for some in (rest, ~rest)]
        lines += [
            "",
            f"{100 * rest.mean():.0f} % of the heads give the first token more than half: they add {added[0]} of what "
            f"the mean head of their layer adds, the others {added[1]}",
            "Spearman's rho of what a head gives the first token and what it adds: {:.2f}, within layers {:.2f}".format(
                *self.rho
            ),
        ]
        return "\n".join(lines)

    def write(self, out: Path) -> None:
        """Save `unsink.json` and the figure with its data."""
        found = {"model": self.model, "conditions": [asdict(x) for x in self.conditions], "rho": self.rho}
        write_text(out / "unsink.json", json.dumps(found, indent=2) + "\n")
        write_arrays(out / "heads.npz", mass=self.mass, adds=self.adds)
        plots.draw_unsink(out)


def _cut(inputs: Inputs, size: int) -> list[Inputs]:
    """Batches of rows of token sequences."""
    names = ("input_ids", "attention_mask", "position_ids", "image_mask", "frame_mask")
    starts = range(0, len(inputs.input_ids), size)
    return [replace(inputs, **{name: getattr(inputs, name)[i : i + size] for name in names}) for i in starts]


def _heads(model: LVLM, batches: list[Inputs]) -> dict[str, Float[np.ndarray, "layer head"]]:
    """`mass` and `adds` of every head."""

    def reduce(name: str, _: int, value: Tensor) -> Tensor:
        if name == "pattern":
            return value[:, :, 1:, 0].mean(-1)
        return value[:, 1:].float().norm(dim=-1).mean(1)

    found = [read(model, some, ["pattern", "result"], reduce=reduce) for some in batches]
    mass, adds = (torch.cat([f[name] for f in found]).mean(0).cpu().numpy() for name in ("pattern", "result"))
    return {"mass": mass, "adds": adds / adds.mean(-1, keepdims=True)}


def _keep(masses: list[float], edit: SiteEdit | None, layer: int, pattern: Tensor) -> Tensor | None:
    """Note what the first token gets of later queries, then edit."""
    masses.append(pattern[:, :, 1:, 0].mean().item())
    return None if edit is None else edit(layer, pattern)


def measure_unsink(model: LVLM, config: UnsinkConfig) -> UnsinkReport:
    """Losses under every condition, and the heads."""
    text = text_of(SinksConfig(text=config.text))
    batches = _cut(sequences(model, "natural", config.n, config.length, config.seed, text), config.batch_size)
    each: dict[str, tuple[Tensor, float]] = {}
    for name, edits in conditions().items():
        masses: list[float] = []

        watched = {**edits, "pattern": partial(_keep, masses, edits.get("pattern"))}
        found = [losses(run_with_edits(model, some, watched, keep=None), some) for some in batches]
        each[name] = torch.cat(found), float(np.mean(masses))
    plain = each["as it is"][0]
    rows = [Condition(n, Estimate.of(x), Estimate.of(x - plain), mass) for n, (x, mass) in each.items()]
    return UnsinkReport(config, model.name, tuple(rows), **_heads(model, batches))


def run_unsink(config: UnsinkConfig) -> UnsinkReport:
    """Load the model, measure, and write the report if `out` says where; a folder belongs to one run."""
    model = open_model(config.model)
    if config.out is None:
        return measure_unsink(model, config)
    text, out = text_of(SinksConfig(text=config.text)), Path(config.out)
    settings = {k: v for k, v in asdict(config).items() if k not in ("out", "text")}
    named = {"weights": model.fingerprint, "text": None if text is None else digest(text)}
    manifest = Manifest.of(experiment="unsink", **settings, **named)
    manifest.check(out)
    with locked(out):
        manifest.claim(out)
        report = measure_unsink(model, config)
        report.write(out)
    return report
