"""Every figure of a run from the numbers saved in its folder: how runs draw them, and how they are drawn again."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from interp.evaluate.bootstrap import Interval
from interp.plots.attention import bars, sparsity_curves
from interp.plots.heads import head_heatmap, predicted_against
from interp.plots.methods import against_controls, chair_against, method_matrix, operating_curve
from interp.plots.names import readable, setting, settings_of
from interp.plots.sinks import layer_profiles, mass_against_addition, over_steps, sparsity_by_length, two_maps
from interp.plots.style import SHARE, limits_of, save
from interp.plots.sweeps import Curve, dose_curve, sweep_curves
from interp.plots.words import swap_losses, t_vhd_histograms

MANY = 40
"""With more methods than this a scatter of all of them shows nothing."""
SWEPT = {
    "chair_s": "captions with a hallucination, CHAIR_S (%)",
    "recall": "recall of true objects (%)",
    "length": "length (words)",
}
MEASURED = {
    "chair_s": "CHAIR_S (%)",
    "chair_i": "CHAIR_I (%)",
    "recall": "recall (%)",
    "pope_accuracy": "POPE accuracy (%)",
    "log_likelihood": "log p of a token (nats)",
}
CONTRIBUTION, LOGIT = "contribution to log p (nats)", "logit above the other objects'"
CAUSAL = {
    "push_hallucinated": ("what heads do for hallucinated words", CONTRIBUTION),
    "push_correct": ("what heads do for correct words", CONTRIBUTION),
    "causal": ("correct minus hallucinated", CONTRIBUTION),
    "direct_hallucinated": ("written directly for hallucinated words", LOGIT),
    "direct_correct": ("written directly for correct words", LOGIT),
}
LAYERS = {
    "sink_1": "first token is a sink (%)",
    "hidden": "hidden norm, times the median of the others",
    "value": "value norm, times the median of the others",
    "cosine": "cosine of queries with the first key",
}
CHECKPOINTS: dict[str, Callable[[dict[str, Any]], float]] = {
    "first token is a sink (%)": lambda row: row["sink_1"]["mean"],
    "loss (nats)": lambda row: row["loss"]["mean"],
    "hidden norm of the first, times the others": lambda row: row["hidden"],
}
EMERGENCE: dict[str, Callable[[dict[str, Any]], float]] = {
    "first token is a sink (%)": lambda row: row["sink"][0],
    "the bias is a sink (%)": lambda row: row["sink_bias"],
    "loss on held-out text (nats)": lambda row: row["loss"],
}


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as stored:
        return dict(stored)


def draw_study(out: Path) -> None:
    """From `summary.json`, `vhd.npz` and `t_vhd.npz`: VHD, chosen heads, T-VHD, and methods against each other."""
    summary = _json(out / "summary.json")
    methods = summary["methods"]
    if (out / "vhd.npz").exists():
        vhd = _arrays(out / "vhd.npz")["vhd"]
        title = "VHD at the first step, mean over images"
        save(head_heatmap(vhd, "VHD (Euclidean distance)", title), out / "vhd.png")
    for name, values in methods.items():
        if "heads" in values:
            frequency = np.array(values["heads"]["frequency"], dtype=float)
            ax = head_heatmap(frequency, "% of images", f"heads that {readable(name)} chose", limits=SHARE)
            save(ax, out / (re.sub(r"[^\w.=-]+", "-", f"heads-{name}") + ".png"))
    if (out / "t_vhd.npz").exists():
        stored = _arrays(out / "t_vhd.npz")
        words, sentences = (
            [{"t_vhd": v, "hallucinated": bool(h)} for v, h in zip(stored[k], stored[f"{k}_hallucinated"], strict=True)]
            for k in ("words", "sentences")
        )
        save(t_vhd_histograms(words, sentences, int(stored["top_k"])), out / "t_vhd.png")
    if len(methods) <= MANY:
        columns = ("recall", "chair_s", "tokens_per_s")
        rates = {
            n: {c: Interval(v[c], *v["interval"].get(c, (v[c], v[c]))) for c in columns} for n, v in methods.items()
        }
        for column, label, file in (
            ("recall", "recall of true objects (%)", "chair_recall.png"),
            ("tokens_per_s", "tokens per second", "chair_speed.png"),
        ):
            save(chair_against(rates, column, label), out / file)
    if "operating_curve" in summary:
        recall, chair_i = (
            np.array([p[c]["value"] for p in summary["operating_curve"]["points"]], dtype=float)
            for c in ("recall", "chair_i")
        )
        placed = {n: {c: Interval(v[c], *v["interval"][c]) for c in ("recall", "chair_i")} for n, v in methods.items()}
        knob = {"stopping": "greedy, stopping sooner or later", "naming": "greedy, naming more or less freely"}
        drawn = operating_curve(recall, chair_i, placed, what=knob[summary["operating_curve"]["bias_on"]])
        save(drawn, out / "operating_curve.png")


def curves_of(rows: list[dict[str, str]], along: str, shared: dict[str, str], column: str) -> list[Curve]:
    """One curve for each method and setting of the other parameters; several seeds make one with a band."""
    groups: dict[str, dict[str, list[dict[str, str]]]] = {}
    for row in rows:
        own = settings_of(row["name"])
        if along in own:
            at = own.pop(along)
            label = readable({k: v for k, v in own.items() if k != "seed" and k not in shared})
            groups.setdefault(label, {}).setdefault(at, []).append(row)
    curves = []
    for label, at in groups.items():
        every = [[float(row[column]) for row in found] for found in at.values()]
        centre, seeds = [sum(v) / len(v) for v in every], max(map(len, every))
        if seeds > 1:
            low, high = [min(v) for v in every], [max(v) for v in every]
        else:
            low, high = ([float(found[0][f"{column}_{end}"]) for found in at.values()] for end in ("low", "high"))
        curves.append(Curve(label + (f" ({seeds} seeds)" if seeds > 1 else ""), list(at), centre, low, high, seeds > 1))
    return curves


def draw_sweep(out: Path) -> None:
    """From `sweep.csv`: a curve for each method along the first parameter; what all curves share is in the title."""
    with (out / "sweep.csv").open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    along = (reader.fieldnames or [])[2]
    baseline = next(row for row in rows if row["name"] == "greedy")
    swept = [settings_of(row["name"]) for row in rows if along in settings_of(row["name"])]
    fixed = [{(k, v) for k, v in own.items() if k not in ("method", "heads", "by", along)} for own in swept]
    shared = dict(set.intersection(*fixed)) if fixed else {}
    measures = {label: curves_of(rows, along, shared, column) for column, label in SWEPT.items()}
    title = ", ".join(setting(k, v) for k, v in shared.items())
    lines = {label: float(baseline[column]) for column, label in SWEPT.items()}
    save(sweep_curves(measures, lines, along, title), out / "sweep.png")


def draw_ablation(out: Path) -> None:
    """From `ablation.json`: the edit against greedy and as many random heads."""
    values = _json(out / "ablation.json")["values"]
    controls = [name for name in values if "random seed=" in name]
    measures = {
        label: {name: Interval(**row[c]) for name, row in values.items() if c in row} for c, label in MEASURED.items()
    }
    save(against_controls({label: row for label, row in measures.items() if row}, controls), out / "ablation.png")


def draw_causal(out: Path) -> None:
    """From `heads.npz` (and `patching.npz`): maps of contributions, those of a pair on one scale."""
    maps = _arrays(out / "heads.npz")
    for name, (title, label) in CAUSAL.items():
        kind = name.partition("_")[0]
        if np.isfinite(maps[name]).any():
            pair = [m for other, m in maps.items() if other in CAUSAL and other.startswith(kind)]
            ax = head_heatmap(maps[name], label, title, signed=True, limits=limits_of(*pair, signed=True))
            save(ax, out / f"{name}.png")
    if (out / "patching.npz").exists():
        pairs = _arrays(out / "patching.npz")
        labels = "attribution patching (nats)", "silencing the head (nats)"
        save(predicted_against(pairs["predicted"], pairs["exact"], *labels), out / "patching.png")


def draw_cause(out: Path) -> None:
    """From `cause.json` and `swaps.npz`: what each word loses with its picture and with its text."""
    criterion, found = _json(out / "cause.json")["criterion_nats"], _arrays(out / "swaps.npz")
    lost = found["picture_swapped"], found["text_swapped"]
    save(swap_losses(*lost, found["hallucinated"], criterion), out / "swaps.png")


def draw_attention(out: Path) -> None:
    """From `attention.json` and the `.npz` of each figure: sparsity, sinks, attention to the image, top tokens."""
    found, eps = _json(out / "attention.json"), _json(out / "manifest.json")["eps"]
    curves = {n: (np.array(c["mean"]), np.array(c["standard_error"])) for n, c in found["curves"].items()}
    layers = {n: values for n, values in _arrays(out / "sparsity.npz").items() if n.startswith("layer ")}
    save(sparsity_curves(found["fractions"], curves, layers), out / "sparsity.png")
    for file, key, label, title in (
        ("sink", "first_is_sink_percent", "% of images", f"first token receives more than {eps}"),
        ("image_mass", "image_mass_percent", "% of the attention", "attention of generated tokens to the image"),
    ):
        save(head_heatmap(_arrays(out / f"{file}.npz")[key], label, title, limits=SHARE), out / f"{file}.png")
    tokens = found["top_tokens"]
    places = ["" if t["position"] is None else f", position {t['position']}" for t in tokens]
    labels = [f"{t['text']!r} ({t['kind']}{place})" for t, place in zip(tokens, places, strict=True)]
    received = [100 * t["received"] for t in tokens]
    title = "tokens that are sinks, or come nearest"
    save(bars(labels, received, "mean attention received (%)", title, limits=SHARE), out / "top_tokens.png")


def draw_sinks(out: Path) -> None:
    """From `sinks.json` and the `.npz` beside it: maps of heads on one scale, profiles by layer, sparsity by length."""
    found = _json(out / "sinks.json")
    eps = found["settings"]["eps"]
    maps = {path.stem.removeprefix("sink_"): path for path in sorted(out.glob("sink_*.npz"))}
    for kind, path in maps.items():
        title = f"{kind.replace('_', ' text of length ')} text: first token receives more than {eps}"
        title = title if "_" not in kind else title.removesuffix(" text")
        ax = head_heatmap(_arrays(path)["first_is_sink_percent"], "% of sequences", title, limits=SHARE)
        save(ax, path.with_suffix(".png"))
    if (out / "random_weights.npz").exists():
        titles = (f"{found['model']}: first token receives more than {eps}", "the same with random weights")
        kind = next(kind for kind in maps if kind.startswith(found["rows"][0]["kind"]))
        pair = (_arrays(path)["first_is_sink_percent"] for path in (maps[kind], out / "random_weights.npz"))
        save(two_maps(dict(zip(titles, pair, strict=True)), "% of sequences"), out / "against_random.png")
    profiles = {p.stem.removeprefix("layers_").replace("_", " "): _arrays(p) for p in sorted(out.glob("layers_*.npz"))}
    if profiles:
        measures = {label: {k: v[name] for k, v in profiles.items()} for name, label in LAYERS.items()}
        save(layer_profiles(measures), out / "layers.png")
    _draw_lengths(found.get("rows", []), out / "sparsity_length.png")


def _draw_lengths(rows: list[dict[str, Any]], path: Path) -> None:
    """Sparsity against length, where a kind was measured at several."""
    several = [k for k in dict.fromkeys(r["kind"] for r in rows) if sum(r["kind"] == k for r in rows) > 1]
    if not several:
        return
    lengths = sorted({r["length"] for r in rows})
    names = {"all keys": "", "without the first token": "_rest"}
    measures = {}
    labels = {"share": "share of the keys for 98 % of the attention (%)", "top": "mass of the top 1 % (%)"}
    for measure, label in labels.items():
        series = {}
        for kind in several:
            mine = sorted((r for r in rows if r["kind"] == kind), key=lambda r: r["length"])
            for name, suffix in names.items():
                each = [r[measure + suffix] for r in mine]
                series[f"{kind}, {name}"] = ([e["mean"] for e in each], [e["error"] for e in each])
        measures[label] = series
    save(sparsity_by_length(lengths, measures), path)


def draw_checkpoints(out: Path) -> None:
    """From `checkpoints.json`: `Sink_1`, loss and the first token's hidden norm against the steps of a training."""
    rows = _json(out / "checkpoints.json")["rows"]
    kinds = list(dict.fromkeys(r["kind"] for r in rows))
    measures: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for label, read in CHECKPOINTS.items():
        measures[label] = {k: _series([r for r in rows if r["kind"] == k], read) for k in kinds}
    save(over_steps(measures), out / "checkpoints.png")


def _series(rows: list[dict[str, Any]], read: Callable[[dict[str, Any]], float]) -> tuple[list[float], list[float]]:
    ordered = sorted(rows, key=lambda r: r["step"])
    return [r["step"] for r in ordered], [read(r) for r in ordered]


def draw_emergence(out: Path) -> None:
    """From `emergence.json`: sinks and loss over the training of small decoders, those that belong together at once."""
    recipes = _json(out / "emergence.json")["recipes"]
    groups: dict[str, list[str]] = {}
    for name, found in recipes.items():
        for group in found["groups"]:
            groups.setdefault(group, []).append(name)
    for group, names in groups.items():
        measures = {label: {n: _series(recipes[n]["rows"], read) for n in names} for label, read in EMERGENCE.items()}
        save(over_steps(measures), out / f"{group}.png")


def draw_unsink(out: Path) -> None:
    """From `unsink.json` and `heads.npz`: the heads that rest on the first token, and what they add."""
    heads = _arrays(out / "heads.npz")
    save(mass_against_addition(heads["mass"], heads["adds"], _json(out / "unsink.json")["model"]), out / "heads.png")


def draw_doses(out: Path) -> None:
    """From `dose.json`: hallucination, sight, the probe and what hallucinations follow, against the dose of tuning."""
    rows: list[dict[str, Any]] = _json(out / "dose.json")

    def point(value: float) -> Interval:
        return Interval(value, value, value)

    def text_alone(shares: dict[str, dict[str, float]] | None) -> Interval:
        return Interval(**shares["text"]) if shares else point(float("nan"))  # no hallucination, nothing to follow

    def broken(name: str) -> list[Interval]:
        return [Interval(**row["broken"]["interval"][name]) for row in rows]

    measures = {
        "broken scenes (%)": {
            "CHAIR_S": broken("chair_s"),
            "recall": broken("recall"),
            "absent partners named": broken("guessed"),
            "hallucinations that follow the text alone": [text_alone(row["follows"]["shares"]) for row in rows],
        },
        "d' on broken scenes": {"d'": broken("d_prime")},
        "AUROC": {"probe for absent and present partners": [point(max(row["probe_auroc"])) for row in rows]},
    }
    dose = np.array([row["dose"] for row in rows], dtype=float)
    save(dose_curve(dose, measures, "steps of visual tuning", logarithmic=True), out / "dose.png")


def draw_across(out: Path) -> None:
    """From `across.json`: CHAIR_S of every method minus greedy on every model."""
    found = _json(out / "across.json")
    cells = {m: {n: Interval(**v) for n, v in row.items()} for m, row in found["chair_s"].items()}
    save(method_matrix(cells, "CHAIR_S minus greedy (percentage points)", found["heads"]), out / "across.png")


RUNS: dict[str, Callable[[Path], None]] = {
    "summary.json": draw_study,
    "sweep.csv": draw_sweep,
    "ablation.json": draw_ablation,
    "causal.json": draw_causal,
    "cause.json": draw_cause,
    "attention.json": draw_attention,
    "sinks.json": draw_sinks,
    "checkpoints.json": draw_checkpoints,
    "emergence.json": draw_emergence,
    "unsink.json": draw_unsink,
    "dose.json": draw_doses,
    "across.json": draw_across,
}
"""The file that tells what a folder is the run of, and what draws its figures."""


def redraw(out: Path) -> list[Path]:
    """Draw the figures of a run again from its saved numbers, and return the pictures written, in order of name.

    Raises ValueError if the folder holds no run that has figures.
    """
    draw = [function for file, function in RUNS.items() if (out / file).exists()]
    if draw_study in draw and "t_vhd" not in _json(out / "summary.json"):
        draw.remove(draw_study)  # yes/no questions were asked
    if not draw:
        raise ValueError(f"{out} holds no run with figures: expected one of {', '.join(RUNS)} in it")
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    for function in draw:
        function(out)
    return sorted(path for path in out.glob("*.png") if before.get(path) != path.stat().st_mtime_ns)
