"""Attention over a data set: pictures captioned greedily, statistics of every step, means with standard errors."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import punctuation

import numpy as np

from interp import plots
from interp.data import Sample
from interp.experiments.compared import BASELINE
from interp.experiments.config import FIFTY, TENS, DataConfig, ExperimentConfig, RunConfig, at_least
from interp.experiments.engine import Job, Run
from interp.experiments.records import AttentionRecord, TokenSums
from interp.experiments.setup import Setup
from interp.folder import write_arrays, write_text
from interp.metrics.attention import FRACTIONS, KINDS, RECALLS, SELECTED, STRONG
from interp.models import LVLM, Inputs
from interp.trace.attention import GROUPS, AttentionStatistics, attention_statistics

TOP_TOKENS = 12


@dataclass(frozen=True)
class SurveyConfig(ExperimentConfig):
    """Settings of `interp attention`; every field is an option of the command."""

    data: DataConfig = FIFTY
    run: RunConfig = TENS
    max_new_tokens: int = 128
    """Length cap of a caption, in tokens."""
    eps: float = 0.3
    """A token that receives more than this is a sink."""

    def __post_init__(self) -> None:
        at_least(1, max_new_tokens=self.max_new_tokens)
        if not 0 < self.eps < 1:
            raise ValueError(f"eps lies between 0 and 1, got {self.eps}")


class ImageMeans:
    """Means over images of their arrays; `nan` entries of an image do not count."""

    def __init__(self, records: Sequence[AttentionRecord]) -> None:
        self.n_images = len(records)
        self.sums: dict[str, np.ndarray] = {}
        for record in records:
            for name, value in record.arrays.items():
                known = np.nan_to_num(value.astype(np.float64))
                new = np.stack([known, known**2, ~np.isnan(value)])
                self.sums[name] = self.sums.get(name, 0) + new

    def mean(self, name: str) -> np.ndarray:
        """Mean over images; `nan` where no image counted."""
        total, _, n = self.sums[name]
        return total / np.where(n > 0, n, np.nan)

    def standard_error(self, name: str) -> np.ndarray:
        """Standard error of the mean over images."""
        _, squares, n = self.sums[name]
        variance = (squares / np.where(n > 0, n, np.nan) - self.mean(name) ** 2) * n / np.where(n > 1, n - 1, np.nan)
        return np.sqrt(np.maximum(variance, 0) / n)


def _of_image(stats: AttentionStatistics, row: int, eps: float) -> dict[str, np.ndarray]:
    """The arrays of one image that are averaged over images."""
    kinds = stats.kinds[row]
    first = int(stats.real[row].int().argmax())
    found = {
        name: getattr(stats, name)[row] for name in ("recall", "share", "recall_rest", "share_rest", "kept", "squared")
    }
    found["first_received"] = stats.received[row, :, :, first]
    found["first_is_sink"] = stats.sinks(eps)[row, :, :, first].float()
    found["any_is_sink"] = stats.sinks(eps)[row].any(-1).float()
    for name, values in (("image_mass", stats.image_mass[row]), ("entropy", stats.entropy[row])):
        asks = [values[..., kinds == kind].mean(-1) for kind in range(len(KINDS))]
        found[name] = np.stack(asks, -1)
    visible = stats.real[row].cumsum(-1)
    groups = (stats.real[row] & (kinds != KINDS.index("generated")), kinds == KINDS.index("generated"))
    found["n_keys"] = np.array([float(visible[g].float().mean()) for g in groups])
    return {name: np.asarray(value, dtype=np.float32) for name, value in found.items()}


def kind_of(text: str, is_image: bool, is_special: bool) -> str:
    """What a token is in the report: image, special (BOS and the like), punctuation or word."""
    if is_image:
        return "image"
    if is_special:
        return "special"
    return "punctuation" if text.strip() and all(c in punctuation for c in text.strip()) else "word"


def token_sums(model: LVLM, inputs: Inputs, stats: AttentionStatistics, row: int, eps: float) -> list[TokenSums]:
    """The tokens of a sample, each with what it receives; generated ones of the same text count together."""
    received = stats.received[row].mean((0, 1))
    sink = stats.sinks(eps)[row].float().mean((0, 1))
    weight = stats.sink_weights()[row].mean((0, 1))
    special = set(model.tokenizer.all_special_ids)
    places = stats.real[row].cumsum(-1) - 1
    found = []
    for i in stats.real[row].nonzero()[:, 0].tolist():
        token_id, kind = int(inputs.input_ids[row, i]), int(stats.kinds[row, i])
        text = model.tokenizer.decode([token_id])
        named = kind_of(text, kind == KINDS.index("image"), token_id in special)
        position = None if kind == KINDS.index("generated") else int(places[i])
        found.append(TokenSums(text, named, 1, float(received[i]), float(sink[i]), float(weight[i]), position))
    return added_up(found)


def added_up(tokens: Sequence[TokenSums]) -> list[TokenSums]:
    """One entry for each position, text and kind, in the order of their first."""
    sums: dict[tuple[int | None, str, str], TokenSums] = {}
    for t in tokens:
        key = (t.position, t.text, t.kind)
        if key not in sums:
            sums[key] = t
            continue
        old = sums[key]
        received, sink, weight = old.received + t.received, old.sink + t.sink, old.weight + t.weight
        sums[key] = TokenSums(t.text, t.kind, old.count + t.count, received, sink, weight, t.position)
    return list(sums.values())


@dataclass(frozen=True)
class SinkToken:
    """A token of the report; `received`, `sink` (share of heads) and `weight` are means over its occurrences."""

    position: int | None
    text: str
    kind: str
    count: int
    received: float
    sink: float
    weight: float


def top_tokens(tokens: Sequence[TokenSums], n_images: int, top: int = TOP_TOKENS) -> list[SinkToken]:
    """The tokens that are sinks in the most heads, then those that receive most; at least one for ten images."""
    rows = [
        SinkToken(t.position, t.text, t.kind, t.count, t.received / t.count, t.sink / t.count, t.weight / t.count)
        for t in added_up(tokens)
        if 10 * t.count >= n_images
    ]
    return sorted(rows, key=lambda t: (-round(t.sink, 4), -t.received))[:top]


@dataclass(frozen=True)
class Survey:
    """A finished survey."""

    config: SurveyConfig
    means: ImageMeans
    tokens: list[SinkToken]
    out: Path
    empty: int = 0
    failures: int = 0

    def curve(self, name: str, group: int) -> tuple[np.ndarray, np.ndarray]:
        """A sparsity curve averaged over layers and heads, with its standard error over images."""
        mean, error = self.means.mean(name)[:, :, group], self.means.standard_error(name)[:, :, group]
        return np.nanmean(mean, (0, 1)), np.nanmean(error, (0, 1))

    def __str__(self) -> str:
        n_keys = self.means.mean("n_keys")
        what, images = self.config.model.model, self.means.n_images
        lines = [f"attention of {what} on {images} images of {self.config.data.data}, {self.empty} empty captions"]
        header = "".join(f"{100 * f:>8g} %" for f in FRACTIONS)
        lines += ["", "mass held by the top share of the keys (mean over layers, heads, queries)", f"{'':<44}{header}"]
        for group, label in enumerate(f"{group} queries" for group in GROUPS):
            for name, suffix in (("recall", ""), ("recall_rest", ", without the first token")):
                values = "".join(f"{100 * v:>10.1f}" for v in self.curve(name, group)[0])
                lines.append(f"{label + suffix:<44}{values}")
        share = [f"{100 * v:.1f} %" for v in self.curve("share", 1)[0]]
        wanted = ", ".join(f"{100 * r:g} %" for r in RECALLS)
        one = np.ceil(0.01 * n_keys[1] - 1e-9)
        layers = np.nanmean(self.means.mean("recall")[:, :, 1, FRACTIONS.index(0.01)], 1)
        lines += [
            f"smallest share of the keys that holds {wanted} (generated queries): {', '.join(share)}",
            f"a generated query sees {n_keys[1]:.0f} keys on average: 1 % of them are {one:.0f}, which hold "
            f"{100 * layers.min():.1f} to {100 * layers.max():.1f} % of the mass, by layer",
            *self._squared_lines(),
            "",
            f"sinks (receive more than {self.config.eps}): the first token in "
            f"{100 * self.means.mean('first_is_sink').mean():.1f} % of heads, any token in "
            f"{100 * self.means.mean('any_is_sink').mean():.1f} %",
            "position  token              kind         count  received  sink in heads  w",
        ]
        for t in self.tokens:
            place = "any" if t.position is None else t.position
            numbers = f"{t.count:>6}{t.received:>10.3f}{100 * t.sink:>13.1f} %  {t.weight:.4f}"
            lines.append(f"{place!s:>8}  {t.text!r:<18} {t.kind:<12}{numbers}")
        mass = [f"{kind} queries {100 * v:.1f} %" for kind, v in zip(KINDS, self._image_mass(), strict=True)]
        lines += ["", f"attention paid to the image: {', '.join(mass)}", ""]
        if self.failures:
            lines += [f"{self.failures} images failed; see failures.jsonl"]
        lines += [f"results: {self.out}"]
        return "\n".join(lines)

    def _squared_lines(self) -> list[str]:
        """What VASparse's squared logit chooses, for generated queries."""
        lines = ["", "keys chosen by the square of their logit (generated queries)"]
        lines.append("share chosen  negative  below -1 scaled  mass they hold  mass of as many by probability")
        for fraction, row in zip(SELECTED, np.nanmean(self.means.mean("squared")[:, :, 1], (0, 1)), strict=True):
            negative, strong, held, most = (f"{100 * v:.1f} %" for v in row)
            lines.append(f"{100 * fraction:>10g} %{negative:>10}{strong:>17}{held:>16}{most:>17}")
        return lines

    def _image_mass(self) -> np.ndarray:
        return self.means.mean("image_mass").mean((0, 1))


def _records(model: LVLM, samples: Sequence[Sample], config: SurveyConfig) -> list[AttentionRecord]:
    """One record an image."""
    inputs = model.inputs([s.image for s in samples], config.data.prompt)
    captions = model.generate(inputs, max_new_tokens=config.max_new_tokens).tokens
    longest = max(len(c) for c in captions)
    whole = inputs.extended(captions) if longest else inputs
    stats = attention_statistics(model, whole, longest)
    records = []
    for row, (sample, caption) in enumerate(zip(samples, captions, strict=True)):
        arrays, tokens = _of_image(stats, row, config.eps), token_sums(model, whole, stats, row, config.eps)
        records.append(AttentionRecord(sample.image_id, BASELINE, len(caption), arrays, tuple(tokens)))
    return records


def run_survey(config: SurveyConfig) -> Survey | None:
    """Measure attention over images, or go on with a survey that was interrupted.

    Under a launcher of several processes the first one returns the survey, the others None when all is written.
    """
    return survey(Setup.of(config), config)


def survey(setup: Setup, config: SurveyConfig) -> Survey | None:
    """The attention over a setup's images."""
    settings = {"prompt": config.data.prompt, "max_new_tokens": config.max_new_tokens, "eps": config.eps}
    manifest = setup.manifest("attention", config, **settings)
    out = setup.folder("attention-", config, manifest)

    def work(_: str, samples: Sequence[Sample]) -> list[AttentionRecord]:
        return _records(setup.model, samples, config)

    job = Job("attention", AttentionRecord, setup.data.image_ids, [BASELINE], setup.data.load, work)
    with Run.opened(out, manifest, setup.shard) as run:
        records = run.made(job, config.run)
        if records is None:
            return None
        if not records:
            raise ValueError(f"no image came through; {out / 'failures.jsonl'} says why")
        tokens = top_tokens([t for r in records for t in r.tokens], len(records))
        empty = sum(not r.n_tokens for r in records)
        found = Survey(config, ImageMeans(records), tokens, out, empty, len(run.failures))
        write_survey(found)
        return found


def write_survey(survey: Survey) -> None:
    """Save `attention.json` and the figures, each with its data beside it."""
    means, out = survey.means, survey.out
    curves = {
        f"{group} queries{suffix}": survey.curve(name, i)
        for i, group in enumerate(GROUPS)
        for name, suffix in (("recall", ""), ("recall_rest", ", without the first token"))
    }
    summary = {
        "n_images": means.n_images,
        "fractions": FRACTIONS,
        "curves": {label: {"mean": m.tolist(), "standard_error": e.tolist()} for label, (m, e) in curves.items()},
        "recalls": RECALLS,
        "smallest_share": {group: survey.curve("share", i)[0].tolist() for i, group in enumerate(GROUPS)},
        "kept_by_kind": {
            group: np.nanmean(means.mean("kept")[:, :, i], (0, 1)).tolist() for i, group in enumerate(GROUPS)
        },
        "squared_logits": {
            "selected": SELECTED,
            "strongly_negative_below": STRONG,
            "of": ["negative", "strongly negative", "mass", "mass by probability"],
            **{g: np.nanmean(means.mean("squared")[:, :, i], (0, 1)).tolist() for i, g in enumerate(GROUPS)},
        },
        "keys_seen": dict(zip(GROUPS, means.mean("n_keys").tolist(), strict=True)),
        "first_token_is_sink_percent": 100 * float(means.mean("first_is_sink").mean()),
        "any_token_is_sink_percent": 100 * float(means.mean("any_is_sink").mean()),
        "image_mass": dict(zip(KINDS, means.mean("image_mass").mean((0, 1)).tolist(), strict=True)),
        "top_tokens": [vars(token) for token in survey.tokens],
    }
    write_text(out / "attention.json", json.dumps(summary, indent=2) + "\n")
    layers = {f"layer {i}": np.nanmean(row, 0) for i, row in enumerate(means.mean("recall")[:, :, 1])}
    shown = {label: mean for label, (mean, _) in curves.items()}
    write_arrays(out / "sparsity.npz", fractions=np.array(FRACTIONS), **shown, **layers)
    write_arrays(out / "sink.npz", first_is_sink_percent=100 * means.mean("first_is_sink"))
    mass = 100 * means.mean("image_mass")[:, :, KINDS.index("generated")]
    write_arrays(out / "image_mass.npz", image_mass_percent=mass)
    plots.draw_attention(out)
