"""Every figure function with realistic and extreme data: no text is cut by the canvas, over another, or too small."""

import csv
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from interp import plots
from interp.cli.figures import Figures
from interp.evaluate.bootstrap import Interval
from interp.plots.methods import front, is_variant
from interp.plots.names import readable
from interp.plots.redraw import curves_of
from interp.plots.style import NARROW, figure_of
from interp.plots.sweeps import Curve

matplotlib.use("Agg")
RNG = np.random.default_rng(0)
LONG = "what the heads of this model contribute to words that are hallucinated, in nats of log-probability"
LONG_LABEL = "contribution of the head to the log-probability of the word (nats)"
MAIN = ["greedy", "beams", "sampling", "vhr", "vasparse", "vcd", "m3id", "pai", "dola", "spin", "opera", "top-k"]
MAIN += ["fastv", "streaming-llm", "h2o", "snapkv"]
VARIANTS = [f"vasparse:{s}" for s in ("when=evict", "when=evict:scope=all:keep=0.75", "keep=1", "lambda_=0", "alpha=0")]
VARIANTS += [f"vasparse:{s}" for s in ("mask_rate=0", "beta=0", "score=probs", "saliency_heads=mean", "scope=all")]
VARIANTS += ["vasparse:dropped=discard", "vasparse:contrast=last"]


def interval(value: float, spread: float = 3.0) -> Interval:
    return Interval(value, value - spread, value + spread)


def rates(names: Sequence[str], clustered: bool = False) -> dict[str, dict[str, Interval]]:
    found = {}
    for i, name in enumerate(names):
        recall = 96 + 0.1 * i if clustered else 45 + 53 * ((7 * i) % len(names)) / len(names)
        wrong = 50 + 0.2 * i if clustered else 15 + 80 * ((11 * i) % len(names)) / len(names)
        speed = interval(1300 / (i + 1), 20)
        found[name] = {"recall": interval(recall), "chair_s": interval(wrong, 5), "chair_i": interval(wrong / 4, 1.5)}
        found[name]["tokens_per_s"] = speed
    return found


def words(correct: int, hallucinated: int, scale: float = 15.0) -> list[dict[str, Any]]:
    flags = [False] * correct + [True] * hallucinated
    return [{"t_vhd": 110 - 12 * flag + scale * RNG.standard_normal(), "hallucinated": flag} for flag in flags]


def heads(layers: int, n: int, fill: float | None = None) -> np.ndarray:
    return RNG.uniform(0, 100, (layers, n)) if fill is None else np.full((layers, n), fill)


def holed(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values.flat[:: max(values.size // 7, 1)] = np.nan
    return values


def sweep(n: int, label: str, seeds: bool = True, places: Sequence[str] = ("0.01", "0.02", "0.05", "0.1", "0.2", "1")):
    y = [50.0 + i for i in range(len(places))]
    low, high = [v - 4 for v in y], [v + 4 for v in y]
    curves = [Curve(f"{label} {i}", places, y, low, high) for i in range(n)]
    curves += [Curve("random heads (5 seeds)", places, y, low, high, band=True)] if seeds else []
    measures = ["captions with a hallucination, CHAIR_S (%)", "recall of true objects (%)", "length (words)"]
    return dict.fromkeys(measures, curves), dict.fromkeys(measures, 46.0)


def sparsity(n_layers: int, value: float | None = None):
    fractions = [0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5]
    y = np.linspace(0.2, 0.9, 8) if value is None else np.full(8, value)
    names = ["prefill queries", "prefill queries, without the first token", "generated queries"]
    names.append("generated queries, without the first token")
    layers = {f"layer {i}": np.clip(y + 0.02 * (i - n_layers / 2), 0, 1) for i in range(n_layers)}
    return plots.sparsity_curves(fractions, dict.fromkeys(names, (y, 0.01 * y)), layers)


def picture(width: int, height: int, where: str):
    heat = np.zeros((height, width))
    if where == "even":
        heat += 1 / heat.size
    elif where == "peak":
        heat[: height // 8, : width // 8] = 0.5 / (heat.size / 64)
    elif where == "little":
        heat += 0.001 * RNG.uniform(0, 2, heat.shape) / heat.size
    elif where == "nan":
        heat += np.nan
    title = f"'umbrella', L5H7, L4H7\n{100 * heat.sum():.0f} % of the attention is on the picture"
    return plots.overlay(Image.new("RGB", (width, height), "teal"), heat, title)


def lens(layers: int, positions: int, long: bool = False):
    word = "unbelievably-long" if long else " fork"
    tokens = [f" token{i}" for i in range(positions)]
    return plots.logit_lens([[word] * positions] * layers, RNG.uniform(0, 1, (layers, positions)), tokens)


def words_on(width: int, height: int, columns: int, rows: int):
    words = [
        plots.PlacedWord("unbelievably-long", RNG.uniform(), (c + 0.5) / columns, (r + 0.5) / rows)
        for c in range(columns)
        for r in range(rows)
    ]
    return plots.words_over_picture(Image.new("RGB", (width, height), "teal"), words, "logit lens after layer 31")


def roc(n: int):
    truth = RNG.uniform(size=80) < 0.3
    return plots.roc_curve(
        {f"score number {i}, T-VHD of the word": truth + RNG.standard_normal(80) for i in range(n)}, truth
    )


def doses(n_series: int, n: int, long: str = ""):
    measures = ["captions with a hallucination, CHAIR_S (%)", "discrimination d'", "follow the text (%)"]
    series = {f"series {i}{long}": [interval(40.0 + i + j) for j in range(n)] for i in range(n_series)}
    controls = {measures[0]: RNG.uniform(30, 60, (5, n))}
    dose = np.array([0.0, *2.0 ** np.arange(n - 1)])
    return plots.dose_curve(dose, dict.fromkeys(measures, series), "visual tuning (steps)", controls, logarithmic=True)


def decided(n: int, models: int):
    outcomes = ["holds", "does not hold", "inconclusive"]
    names = [f"testbed-number-{i}" for i in range(models)]
    claim = "It is the choice of the heads that helps: VHR beats as many random heads, and every other set of heads"
    cells = {m: (outcomes[i % 3], "-13.3 [-20.2, -6.6]") for i, m in enumerate(names)}
    return plots.verdict_matrix({f"{i}: {claim}": cells if i % 2 else {} for i in range(n)}, names)


SINK_MEASURES = ["first token is a sink (%)", "hidden norm, times the median of the others", "loss (nats)"]


def profiles(n_series: int, layers: int):
    series = {f"natural text of {i} tokens": RNG.uniform(1, 90, layers) for i in range(n_series)}
    return plots.layer_profiles(dict.fromkeys(SINK_MEASURES, series))


def by_length(lengths: Sequence[int]):
    mean = [90.0 / (i + 1) for i in range(len(lengths))]
    series = {name: (mean, [np.nan, *mean[1:]]) for name in ("python, all keys", "python, without the first token")}
    measures = ["share of the keys for 98 % of the attention (%)", "mass of the top 1 % (%)"]
    return plots.sparsity_by_length(lengths, dict.fromkeys(measures, series))


def steps(n_series: int, n: int):
    at = [0.0, *np.geomspace(1, 4000, n - 1).round()]
    series = {f"kernel number {i}": (at, list(RNG.uniform(1, 90, n))) for i in range(n_series)}
    return plots.over_steps(dict.fromkeys(SINK_MEASURES, series))


def matrix(methods: Sequence[str], models: int):
    causes = {f"testbed-number-{i}": "habit, follows the text" for i in range(models)}
    cells = {
        m: {name: interval(RNG.uniform(-30, 30), 8) for name in list(causes)[: 1 + i]} for i, m in enumerate(methods)
    }
    return plots.method_matrix(cells, "CHAIR_S minus greedy (percentage points)", causes)


def controls(names: Sequence[str], measures: int):
    labels = ["CHAIR_S (%)", "CHAIR_I (%)", "recall (%)", "POPE accuracy (%)", "log p of a token (nats)"][:measures]
    shown = [*names, "zero random seed=0", "zero random seed=1"]
    return plots.against_controls(
        {label: {n: interval(50) if "%" in label else interval(-0.3, 0.01) for n in shown} for label in labels},
        shown[-2:],
    )


CURVE = np.linspace(40, 98, 20), np.linspace(2, 18, 20)
FIGURES: dict[str, Callable[[], Axes | Sequence[Axes]]] = {
    "heads": lambda: plots.head_heatmap(heads(8, 8), "VHD (Euclidean distance)", "VHD at the first step"),
    "heads 4x4 long": lambda: plots.head_heatmap(heads(4, 4), LONG_LABEL, LONG, limits=plots.SHARE),
    "heads one layer": lambda: plots.head_heatmap(heads(1, 12), "% of images", LONG, limits=plots.SHARE),
    "heads one": lambda: plots.head_heatmap(heads(1, 1), LONG_LABEL, LONG, signed=True),
    "heads 32x32": lambda: plots.head_heatmap(heads(32, 32), LONG_LABEL, LONG),
    "heads 80x64": lambda: plots.head_heatmap(heads(80, 64), "VHD", "VHD"),
    "heads zero": lambda: plots.head_heatmap(heads(8, 8, 0.0), "% of sequences", "repeated text", limits=plots.SHARE),
    "heads zero, free": lambda: plots.head_heatmap(heads(8, 8, 0.0), "VHD", "VHD", signed=True),
    "heads nan": lambda: plots.head_heatmap(heads(8, 8, np.nan), "VHD", "VHD"),
    "heads some nan": lambda: plots.head_heatmap(holed(heads(30, 9) - 50), LONG_LABEL, LONG, signed=True),
    "heads huge": lambda: plots.head_heatmap(1e6 * heads(8, 8), "VHD", "VHD"),
    "patching": lambda: plots.patching_heatmap(
        heads(8, 9) - 50, ["<s>", " A", " fork", " and"] * 2 + ["."], "nats", "Patching"
    ),
    "patching long": lambda: plots.patching_heatmap(
        holed(heads(32, 120)) - 50, ["averyveryverylongtoken"] * 120, LONG_LABEL, LONG
    ),
    "patching one": lambda: plots.patching_heatmap(heads(1, 1, 0.0), [" "], LONG_LABEL, LONG),
    "predicted": lambda: plots.predicted_against(
        RNG.normal(size=500), RNG.normal(size=500), "attribution patching (nats)", "silencing the head (nats)"
    ),
    "predicted one": lambda: plots.predicted_against(np.zeros(1), np.zeros(1), LONG_LABEL, LONG_LABEL),
    "predicted nan": lambda: plots.predicted_against(np.full(3, np.nan), np.zeros(3), "a (nats)", "b (nats)"),
    "sparsity": lambda: sparsity(8),
    "sparsity one layer": lambda: sparsity(1),
    "sparsity 32 layers": lambda: sparsity(32),
    "sparsity one": lambda: sparsity(4, 1.0),
    "sparsity zero": lambda: sparsity(0, 0.0),
    "sparsity nan": lambda: sparsity(4, np.nan),
    "overlay": lambda: picture(96, 96, "peak"),
    "overlay even": lambda: picture(96, 96, "even"),
    "overlay little": lambda: picture(160, 90, "little"),
    "overlay zero, tall": lambda: picture(60, 150, "zero"),
    "overlay wide": lambda: picture(300, 60, "peak"),
    "overlay nan": lambda: picture(96, 96, "nan"),
    "bars": lambda: plots.bars(
        [f"' word{i}' (word, any place)" for i in range(12)],
        list(RNG.uniform(0, 8, 12)),
        "attention received (%)",
        "tokens that are sinks, or come nearest",
        limits=plots.SHARE,
    ),
    "bars full": lambda: plots.bars(
        ["'<s>' (special, 0)", "b"], [99.5, 0.0], "attention received (%)", LONG, limits=plots.SHARE
    ),
    "bars nan and long": lambda: plots.bars(["a label " * 12, "b", "c"], [np.nan, -1.0, 2.0], LONG_LABEL, LONG),
    "bars zero": lambda: plots.bars(["a"], [0.0], "share (%)", "one"),
    "histogram": lambda: plots.t_vhd_histogram(words(782, 109), "object words"),
    "histograms": lambda: plots.t_vhd_histograms(words(782, 109), words(700, 100, 3.0), 1),
    "histograms empty": lambda: plots.t_vhd_histograms([], words(3, 0), 16),
    "histogram nan": lambda: plots.t_vhd_histogram([{"t_vhd": np.nan, "hallucinated": True}, *words(0, 1)], LONG),
    "along": lambda: plots.t_vhd_along([" fork"] * 44, list(RNG.uniform(80, 120, 44))),
    "along one": lambda: plots.t_vhd_along([" "], [np.nan]),
    "along long": lambda: plots.t_vhd_along(["internationalisation"] * 128, [0.0] * 128),
    "roc": lambda: roc(3),
    "roc many": lambda: roc(12),
    "lens": lambda: lens(8, 12),
    "lens one layer": lambda: lens(1, 1, long=True),
    "lens 32 layers": lambda: lens(32, 14, long=True),
    "lens long": lambda: lens(32, 200),
    "lens over a picture": lambda: words_on(96, 96, 8, 8),
    "lens over a wide picture": lambda: words_on(640, 240, 24, 24),
    "scatter of 4": lambda: plots.chair_against(rates(MAIN[:4]), "recall", "recall of true objects (%)"),
    "scatter of 28": lambda: plots.chair_against(rates(MAIN + VARIANTS), "recall", "recall of true objects (%)"),
    "scatter of 28, speed": lambda: plots.chair_against(rates(MAIN + VARIANTS), "tokens_per_s", "tokens per second"),
    "scatter of 28, clustered": lambda: plots.chair_against(
        rates(MAIN + VARIANTS, clustered=True), "recall", "recall (%)"
    ),
    "scatter of 28 without a base": lambda: plots.chair_against(
        rates(["greedy", *VARIANTS, *(f"mypackage.methods:Mine:alpha={i}" for i in range(15))]), "recall", "recall (%)"
    ),
    "scatter of one": lambda: plots.chair_against(rates(["greedy"], clustered=True), "recall", "recall (%)"),
    "scatter nan": lambda: plots.chair_against(
        {"greedy": dict.fromkeys(("recall", "chair_s"), interval(np.nan))}, "recall", "recall (%)"
    ),
    "operating": lambda: plots.operating_curve(*CURVE, rates(MAIN[:6])),
    "operating 28": lambda: plots.operating_curve(*CURVE, rates(MAIN + VARIANTS)),
    "swaps": lambda: plots.swap_losses(RNG.normal(3, 3, 90), RNG.normal(0, 1, 90), RNG.uniform(size=90) < 0.2, 0.69),
    "swaps none": lambda: plots.swap_losses(np.zeros(0), np.zeros(0), np.zeros(0, dtype=bool), 0.69),
    "operating nan": lambda: plots.operating_curve(np.full(3, np.nan), np.zeros(3), rates(["greedy"])),
    "controls": lambda: controls(["greedy", "zero top10% by vhd"], 5),
    "controls long": lambda: controls(["greedy", "zero top10% of the heads ranked by image_mass", *MAIN], 3),
    "controls one": lambda: controls(["greedy"], 1),
    "matrix": lambda: matrix(MAIN, 3),
    "matrix 28": lambda: matrix(MAIN + VARIANTS, 4),
    "matrix one": lambda: matrix(["vhr"], 1),
    "verdicts": lambda: decided(29, 5),
    "verdict": lambda: decided(1, 1),
    "sweep": lambda: plots.sweep_curves(*sweep(4, "top heads by VHD,"), "share", "heads silenced"),
    "sweep 28": lambda: plots.sweep_curves(
        *sweep(28, "VASparse, scope all, alpha 0, beta 0, dropped discard, score probs"), "keep"
    ),
    "sweep words": lambda: plots.sweep_curves(
        *sweep(2, "VHR", places=["evict", "never", "a very long setting of it"]), "when_"
    ),
    "sweep one": lambda: plots.sweep_curves(*sweep(1, "VHR", seeds=False, places=["1"]), "alpha"),
    "two maps": lambda: plots.two_maps({"smollm2": heads(30, 9), "with random weights": heads(30, 9, 0.0)}, "%"),
    "profiles": lambda: profiles(3, 30),
    "profiles many": lambda: profiles(12, 2),
    "sparsity by length": lambda: by_length([16, 64, 256, 1024, 4096]),
    "sparsity of one length": lambda: by_length([64]),
    "over steps": lambda: steps(2, 8),
    "over steps, many": lambda: steps(12, 24),
    "mass against addition": lambda: plots.mass_against_addition(
        heads(30, 9) / 100, np.exp(RNG.normal(size=(30, 9))), "smollm2: the heads that rest on the first token"
    ),
    "doses": lambda: doses(2, 6),
    "doses many": lambda: doses(12, 12, " with a name that takes much of the width of a figure"),
}


def visible(text: Text) -> bool:
    return text.get_visible() and bool(text.get_text().strip())


def texts_of(figure) -> list[tuple[str, Bbox, float]]:
    """Every text that a reader sees, with its box and its size in points; ticks beyond the limits are not drawn."""
    found: list[Text] = [t for t in figure.texts if visible(t)]
    found += [figure._suptitle] if figure._suptitle is not None else []
    found += [t for legend in figure.legends for t in legend.get_texts()]
    for ax in figure.axes:
        found += [t for t in (ax.title, *ax.texts) if visible(t)]
        found += [t for t in (ax.get_legend().get_texts() if ax.get_legend() else []) if visible(t)]
        for axis in (ax.xaxis, ax.yaxis) if ax.axison else ():
            low, high = sorted(axis.get_view_interval())
            slack = 1e-6 * (high - low)
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            shown = [t for t in ticks if low - slack <= t.get_loc() <= high + slack]
            found += [t for tick in shown for t in (tick.label1, tick.label2) if visible(t)]
            found += [axis.label] if visible(axis.label) else []
    return [(t.get_text(), t.get_window_extent(), float(t.get_fontsize())) for t in dict.fromkeys(found)]


def overlapping(a: Bbox, b: Bbox) -> bool:
    """Whether boxes share more than a hair, 1.5 pixels in both directions."""
    across, up = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
    return across > 1.5 and up > 1.5


def complaints(ax: Axes | Sequence[Axes]) -> list[str]:
    """What is wrong with the texts of a figure."""
    figure = figure_of(ax)
    figure.draw_without_rendering()
    seen, canvas = texts_of(figure), figure.bbox
    wrong = []
    for text, box, size in seen:
        if box.x0 < -1 or box.y0 < -1 or box.x1 > canvas.x1 + 1 or box.y1 > canvas.y1 + 1:
            wrong.append(f"cut by the canvas: {text!r}")
        if size < 6.5:
            wrong.append(f"{size} points are too small: {text!r}")
    wrong += [
        f"{a!r} and {b!r} overlap" for (a, x, _), (b, y, _) in itertools.combinations(seen, 2) if overlapping(x, y)
    ]
    if figure.get_size_inches()[0] > 2 * NARROW or figure.get_size_inches()[1] > 14:
        wrong.append(f"the canvas is too large for a README: {figure.get_size_inches()} inches")
    return wrong


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.mark.parametrize("name", FIGURES)
def test_every_text_is_legible(name):
    assert not complaints(FIGURES[name]())


def test_the_check_sees_what_it_looks_for():
    figure, ax = plt.subplots(figsize=(2, 2))
    ax.set_title("a title that is much wider than its canvas is")
    ax.text(0.5, 0.5, "two words")
    ax.text(0.52, 0.5, "on one place")
    ax.text(0.1, 0.1, "small", fontsize=3)
    found = "\n".join(complaints(ax))
    assert "cut by the canvas: 'a title" in found
    assert "'two words' and 'on one place' overlap" in found
    assert "3.0 points are too small" in found
    figure.set_size_inches(20, 2)
    assert "too large" in complaints(ax)[-1]


def test_every_figure_function_is_rendered():
    other = {"Curve", "limits_of", "save", "redraw"}
    names = [n for n in plots.__all__ if n not in other and not n.startswith("draw_") and callable(getattr(plots, n))]
    source = Path(__file__).read_text(encoding="utf-8")
    assert all(f"plots.{name}(" in source for name in names)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("greedy", "greedy"),
        ("vasparse:lambda_=0:when=evict", "VASparse, lambda 0, when evict"),
        ("edit:heads=top:by=image_mass:op=zero", "top heads by attention to the image, silenced"),
        ("edit:heads=random:share=0.1", "random heads, share 0.1"),
        ("zero top10% by vhd", "top10% heads by VHD, silenced"),
        ("mine:strength=2", "mine, strength 2"),
    ],
)
def test_names_are_words(name, shown):
    assert readable(name) == shown


def test_a_variant_is_grey_only_beside_its_base():
    assert is_variant("vhr:alpha=1", ["greedy", "vhr", "vhr:alpha=1"])
    assert not is_variant("vhr:alpha=1", ["greedy", "vhr:alpha=1"])
    assert not is_variant("vhr", ["greedy", "vhr"])


def test_the_front_holds_what_nothing_beats():
    points = [(90.0, 50.0), (95.0, 60.0), (85.0, 55.0), (95.0, 70.0), (80.0, 20.0)]
    assert front(points) == [4, 0, 1]  # by hand: 2 is beaten by 0, 3 by 1


def test_zero_is_pale_and_percentages_have_one_scale():
    for fill in (0.0, 40.0):
        mesh = plots.head_heatmap(heads(2, 2, fill), "% of images", "", limits=plots.SHARE).collections[0]
        assert mesh.get_clim() == (0.0, 100.0)
        assert fill or min(mesh.to_rgba(np.asarray(mesh.get_array()).ravel())[0][:3]) > 0.75
    assert plots.limits_of(np.zeros(3), signed=True) == (-1.0, 1.0)
    assert plots.limits_of(np.array([1.0, np.nan]), np.array([-3.0]), signed=True) == (-3.0, 3.0)


def test_an_overlay_glows_only_where_attention_falls():
    def opacity(heat: np.ndarray) -> np.ndarray:
        drawn = plots.overlay(Image.new("RGB", (8, 8), "white"), heat, "").images[1]
        return drawn.to_rgba(heat * heat.size)[..., 3]

    assert opacity(np.full((8, 8), 0.001 / 64)).max() < 0.02  # a thousandth of the attention
    peak = np.zeros((8, 8))
    peak[0, 0] = 0.9
    assert opacity(peak)[0, 0] > 0.9
    assert opacity(peak)[1:].max() == 0


def test_bars_are_sorted_by_what_they_show():
    ax = plots.bars(["low", "none", "high"], [1.0, np.nan, 2.0], "share (%)", "")
    assert [t.get_text() for t in ax.get_yticklabels()] == ["high", "low", "none"]
    assert ax.texts[-1].get_text() == "no value"


def test_a_roc_curve_of_equal_scores_is_the_diagonal_and_takes_both_classes():
    truth = np.array([True, False, True, False])
    line = plots.roc_curve({"constant": np.zeros(4)}, truth).lines[1]
    np.testing.assert_array_equal(line.get_xydata(), [[0, 0], [100, 100]])
    line = plots.roc_curve({"score": np.array([3.0, 1.0, 2.0, 2.5])}, truth).lines[1]
    np.testing.assert_array_equal(line.get_xydata(), [[0, 0], [0, 50], [50, 50], [50, 100], [100, 100]])
    with pytest.raises(ValueError, match="both classes"):
        plots.roc_curve({"score": np.zeros(2)}, np.array([True, True]))
    with pytest.raises(ValueError, match="not finite"):
        plots.roc_curve({"score": np.array([np.nan, 1.0, 0.0, 0.0])}, truth)


def test_figures_are_drawn_again_from_saved_numbers(tmp_path, capsys):
    with pytest.raises(ValueError, match="holds no run with figures"):
        plots.redraw(tmp_path)
    np.savez(tmp_path / "sink_chat.npz", first_is_sink_percent=heads(2, 2, 0.0))
    (tmp_path / "sinks.json").write_text(json.dumps({"settings": {"eps": 0.3}}))
    header = (
        "name,method,alpha,chair_s,chair_s_low,chair_s_high,recall,recall_low,recall_high,length,length_low,length_high"
    )
    rows = [f"vhr:alpha={a},vhr,{a},40,30,50,90,80,95,30,29,31" for a in (1, 2)]
    rows += [f"random-heads:seed={s}:alpha=2,random-heads,2,{40 + s},30,50,90,80,95,30,29,31" for s in (0, 1)]
    (tmp_path / "sweep.csv").write_text("\n".join([header, "greedy,greedy,,46,40,50,97,96,98,45,44,46", *rows]) + "\n")
    Figures((str(tmp_path),))()
    assert [Path(line).name for line in capsys.readouterr().out.split()] == ["sink_chat.png", "sweep.png"]
    curves = curves_of(list(csv.DictReader([header, *rows])), "alpha", {}, "chair_s")
    assert [(c.label, c.x, c.y, c.band) for c in curves] == [
        ("VHR", ["1", "2"], [40.0, 40.0], False),
        ("random heads (2 seeds)", ["2"], [40.5], True),
    ]
    assert (curves[1].low, curves[1].high) == ([40.0], [41.0])


def test_what_a_backend_sets_up_outlives_a_figure_s_style():
    """A notebook's backend says at its first figure that figures are shown; the style must not take that back."""
    code = (
        "import matplotlib; matplotlib.use('module://matplotlib_inline.backend_inline'); import numpy as np\n"
        "from IPython.core.interactiveshell import InteractiveShell; InteractiveShell.instance()\n"
        "from interp.plots import head_heatmap; head_heatmap(np.eye(2), 'x', 'y')\n"
        "assert matplotlib.is_interactive()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
