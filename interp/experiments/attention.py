"""Attention over a data set: pictures captioned greedily, statistics of every step, means with standard errors."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from string import punctuation

import numpy as np
from tqdm import tqdm

from interp import plots
from interp.data import open_data
from interp.evaluate.objects import ObjectParser
from interp.experiments.records import Manifest, device_name
from interp.metrics.attention import FRACTIONS, KINDS, RECALLS, SELECTED, STRONG
from interp.models import LVLM, Inputs, load
from interp.trace.attention import GROUPS, AttentionStatistics, attention_statistics

TOP_TOKENS = 12


@dataclass(frozen=True)
class SurveyConfig:
    """Settings of `interp attention`; every field is an option of the command."""

    model: str = "testbed"
    """A bundled model (testbed, testbed-sink), a folder, or a hub id."""
    data: str = "testbed:broken"
    """testbed:broken, testbed:biased, testbed:unbiased, or coco:FOLDER."""
    split: str | None = None
    """Which split; the testbed's default is test, a COCO folder's its only one."""
    limit: int | None = 50
    """How many images, drawn by seed from the sorted ids; None for all."""
    seed: int = 0
    """Seed of the sample of images."""
    prompt: str = "Please describe this image in detail."
    """What the model is asked."""
    max_new_tokens: int = 128
    """Length cap of a caption, in tokens."""
    eps: float = 0.3
    """A token that receives more than this is a sink."""
    batch_size: int = 10
    """Images at once."""
    device: str = "cpu"
    """Where the model runs."""
    dtype: str = "float32"
    """Type of the weights."""
    out: str | None = None
    """Folder of the results; a name made of the settings under runs/ if None."""

    def __post_init__(self) -> None:
        for name in ("limit", "max_new_tokens", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is a number of at least 1, got {value}")
        if not 0 < self.eps < 1:
            raise ValueError(f"eps lies between 0 and 1, got {self.eps}")


class Accumulator:
    """Sums over images, in one file that is replaced as a whole; `nan` entries of an image do not count."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: list[int] = []
        self.sums: dict[str, np.ndarray] = {}
        self.tokens: dict[str, list[float]] = {}
        if path.exists():
            with np.load(path) as state:
                self.sums = {name: state[name] for name in state.files if name != "json"}
                self.done, self.tokens = json.loads(str(state["json"]))

    def add(self, image_id: int, values: dict[str, np.ndarray], tokens: dict[str, list[float]]) -> None:
        """Add an image: its arrays, and for each token it has: count, received, sink share, weight."""
        for name, value in values.items():
            known = np.nan_to_num(value)
            new = np.stack([known, known**2, ~np.isnan(value)]).astype(np.float64)
            self.sums[name] = self.sums.get(name, 0) + new
        for token, row in tokens.items():
            self.tokens[token] = [a + b for a, b in zip(self.tokens.get(token, [0.0] * len(row)), row, strict=True)]
        self.done.append(image_id)

    def save(self) -> None:
        """Write everything; a kill leaves the old file or the new one."""
        new = self.path.with_suffix(".new.npz")
        np.savez(new, allow_pickle=False, json=np.array(json.dumps([self.done, self.tokens])), **self.sums)
        os.replace(new, self.path)

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
    return {name: np.asarray(value, dtype=np.float64) for name, value in found.items()}


def kind_of(text: str, is_image: bool, is_special: bool) -> str:
    """What a token is in the report: image, special (BOS and the like), punctuation or word."""
    if is_image:
        return "image"
    if is_special:
        return "special"
    return "punctuation" if text.strip() and all(c in punctuation for c in text.strip()) else "word"


def token_rows(model: LVLM, inputs: Inputs, stats: AttentionStatistics, row: int, eps: float) -> dict[str, list[float]]:
    """For each token of a sample: count, mean attention received, share of heads where it is a sink, weight `w`.

    Keys are JSON `[position, text, kind]`; generated tokens are told apart by their text alone (position null).
    """
    received = stats.received[row].mean((0, 1))
    sink = stats.sinks(eps)[row].float().mean((0, 1))
    weight = stats.sink_weights()[row].mean((0, 1))
    found: dict[str, list[float]] = {}
    special = set(model.tokenizer.all_special_ids)
    places = stats.real[row].cumsum(-1) - 1
    for i in stats.real[row].nonzero()[:, 0].tolist():
        token_id, kind = int(inputs.input_ids[row, i]), int(stats.kinds[row, i])
        text = model.tokenizer.decode([token_id])
        named = kind_of(text, kind == KINDS.index("image"), token_id in special)
        position = None if kind == KINDS.index("generated") else int(places[i])
        values = [1.0, float(received[i]), float(sink[i]), float(weight[i])]
        key = json.dumps([position, text, named])
        found[key] = [a + b for a, b in zip(found.get(key, [0.0] * 4), values, strict=True)]
    return found


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


def top_tokens(tokens: dict[str, list[float]], n_images: int, top: int = TOP_TOKENS) -> list[SinkToken]:
    """The tokens that are sinks in the most heads, then those that receive most; at least one for ten images."""
    rows = []
    for key, (n, received, sink, weight) in tokens.items():
        position, text, kind = json.loads(key)
        if 10 * n >= n_images:
            rows.append(SinkToken(position, text, kind, int(n), received / n, sink / n, weight / n))
    return sorted(rows, key=lambda t: (-round(t.sink, 4), -t.received))[:top]


@dataclass(frozen=True)
class Survey:
    """A finished survey."""

    config: SurveyConfig
    sums: Accumulator
    tokens: list[SinkToken]
    out: Path

    def curve(self, name: str, group: int) -> tuple[np.ndarray, np.ndarray]:
        """A sparsity curve averaged over layers and heads, with its standard error over images."""
        mean, error = self.sums.mean(name)[:, :, group], self.sums.standard_error(name)[:, :, group]
        return np.nanmean(mean, (0, 1)), np.nanmean(error, (0, 1))

    def __str__(self) -> str:
        n_keys = self.sums.mean("n_keys")
        lines = [f"attention of {self.config.model} on {len(self.sums.done)} images of {self.config.data}"]
        header = "".join(f"{100 * f:>8g} %" for f in FRACTIONS)
        lines += ["", "mass held by the top share of the keys (mean over layers, heads, queries)", f"{'':<44}{header}"]
        for group, label in enumerate(f"{group} queries" for group in GROUPS):
            for name, suffix in (("recall", ""), ("recall_rest", ", without the first token")):
                values = "".join(f"{100 * v:>10.1f}" for v in self.curve(name, group)[0])
                lines.append(f"{label + suffix:<44}{values}")
        share = [f"{100 * v:.1f} %" for v in self.curve("share", 1)[0]]
        wanted = ", ".join(f"{100 * r:g} %" for r in RECALLS)
        one = np.ceil(0.01 * n_keys[1] - 1e-9)
        layers = np.nanmean(self.sums.mean("recall")[:, :, 1, FRACTIONS.index(0.01)], 1)
        lines += [
            f"smallest share of the keys that holds {wanted} (generated queries): {', '.join(share)}",
            f"a generated query sees {n_keys[1]:.0f} keys on average: 1 % of them are {one:.0f}, which hold "
            f"{100 * layers.min():.1f} to {100 * layers.max():.1f} % of the mass, by layer",
            *self._squared_lines(),
            "",
            f"sinks (receive more than {self.config.eps}): the first token in "
            f"{100 * self.sums.mean('first_is_sink').mean():.1f} % of heads, any token in "
            f"{100 * self.sums.mean('any_is_sink').mean():.1f} %",
            "position  token              kind         count  received  sink in heads  w",
        ]
        for t in self.tokens:
            place = "any" if t.position is None else t.position
            numbers = f"{t.count:>6}{t.received:>10.3f}{100 * t.sink:>13.1f} %  {t.weight:.4f}"
            lines.append(f"{place!s:>8}  {t.text!r:<18} {t.kind:<12}{numbers}")
        mass = [f"{kind} queries {100 * v:.1f} %" for kind, v in zip(KINDS, self._image_mass(), strict=True)]
        lines += ["", f"attention paid to the image: {', '.join(mass)}", "", f"results: {self.out}"]
        return "\n".join(lines)

    def _squared_lines(self) -> list[str]:
        """What VASparse's squared logit chooses, for generated queries."""
        lines = ["", "keys chosen by the square of their logit (generated queries)"]
        lines.append("share chosen  negative  below -1 scaled  mass they hold  mass of as many by probability")
        for fraction, row in zip(SELECTED, np.nanmean(self.sums.mean("squared")[:, :, 1], (0, 1)), strict=True):
            negative, strong, held, most = (f"{100 * v:.1f} %" for v in row)
            lines.append(f"{100 * fraction:>10g} %{negative:>10}{strong:>17}{held:>16}{most:>17}")
        return lines

    def _image_mass(self) -> np.ndarray:
        return self.sums.mean("image_mass").mean((0, 1))


def run_survey(config: SurveyConfig) -> Survey:
    """Measure attention over images, or go on with a survey that was interrupted."""
    data = open_data(config.data, config.split, ObjectParser.coco()).limited(config.limit, config.seed)
    model = load(config.model, dtype=config.dtype, device=config.device)
    settings = {k: v for k, v in vars(config).items() if k not in ("out", "device", "limit")}
    manifest = Manifest.of(
        **settings,
        weights=model.fingerprint,
        image_ids=list(data.image_ids),
        device=device_name(model.device),
        attention=model.backend,
    )
    slug = f"attention-{Path(config.model).name}-{config.data}".replace(":", "-").replace("/", "-")
    out = Path(config.out) if config.out else Path("runs") / f"{slug}-{manifest.digest}"
    manifest.claim(out)
    sums = Accumulator(out / "sums.npz")
    with tqdm(total=len(data.image_ids), initial=len(sums.done), unit="image") as bar:
        for start in range(0, len(data.image_ids), config.batch_size):
            ids = data.image_ids[start : start + config.batch_size]
            if set(ids) <= set(sums.done):
                continue
            inputs = model.inputs([data.load(i).image for i in ids], config.prompt)
            captions = model.generate(inputs, max_new_tokens=config.max_new_tokens).tokens
            longest = max(len(c) for c in captions)
            whole = inputs.extended(captions) if longest else inputs
            stats = attention_statistics(model, whole, longest)
            for row, image_id in enumerate(ids):
                tokens = token_rows(model, whole, stats, row, config.eps)
                sums.add(image_id, _of_image(stats, row, config.eps), tokens)
            sums.save()
            bar.update(len(ids))
    survey = Survey(config, sums, top_tokens(sums.tokens, len(sums.done)), out)
    write_survey(survey)
    return survey


def write_survey(survey: Survey) -> None:
    """Save `attention.json` and the figures, each with its data beside it."""
    sums, out = survey.sums, survey.out
    curves = {
        f"{group} queries{suffix}": survey.curve(name, i)
        for i, group in enumerate(GROUPS)
        for name, suffix in (("recall", ""), ("recall_rest", ", without the first token"))
    }
    summary = {
        "n_images": len(sums.done),
        "fractions": FRACTIONS,
        "curves": {label: {"mean": m.tolist(), "standard_error": e.tolist()} for label, (m, e) in curves.items()},
        "recalls": RECALLS,
        "smallest_share": {group: survey.curve("share", i)[0].tolist() for i, group in enumerate(GROUPS)},
        "kept_by_kind": {
            group: np.nanmean(sums.mean("kept")[:, :, i], (0, 1)).tolist() for i, group in enumerate(GROUPS)
        },
        "squared_logits": {
            "selected": SELECTED,
            "strongly_negative_below": STRONG,
            "of": ["negative", "strongly negative", "mass", "mass by probability"],
            **{g: np.nanmean(sums.mean("squared")[:, :, i], (0, 1)).tolist() for i, g in enumerate(GROUPS)},
        },
        "keys_seen": dict(zip(GROUPS, sums.mean("n_keys").tolist(), strict=True)),
        "first_token_is_sink_percent": 100 * float(sums.mean("first_is_sink").mean()),
        "any_token_is_sink_percent": 100 * float(sums.mean("any_is_sink").mean()),
        "image_mass": dict(zip(KINDS, sums.mean("image_mass").mean((0, 1)).tolist(), strict=True)),
        "top_tokens": [vars(token) for token in survey.tokens],
    }
    (out / "attention.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    layers = {f"layer {i}": np.nanmean(row, 0) for i, row in enumerate(sums.mean("recall")[:, :, 1])}
    means = {label: mean for label, (mean, _) in curves.items()}
    np.savez(out / "sparsity.npz", allow_pickle=False, fractions=FRACTIONS, **means, **layers)
    np.savez(out / "sink.npz", allow_pickle=False, first_is_sink_percent=100 * sums.mean("first_is_sink"))
    mass = 100 * sums.mean("image_mass")[:, :, KINDS.index("generated")]
    np.savez(out / "image_mass.npz", allow_pickle=False, image_mass_percent=mass)
    plots.draw_attention(out)
