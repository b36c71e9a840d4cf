"""Rows about looking inside: what reading, attention, ablation and attribution cost beside plain forward passes."""

import json
import subprocess
import sys
from functools import partial
from typing import Any

import torch
from torch import Tensor

from interp.attribution.effects import attributed_contributions, exact_contributions
from interp.bench.clock import Spread, alternating
from interp.bench.rows import Bench, Line, ratio
from interp.bench.sizes import inputs_of, small
from interp.models import LVLM, Inputs, image_free, read, run_with_edits
from interp.trace.attention import attention_statistics
from interp.trace.divergence import token_vhd, vhd

RUNS_OF_MEMORY = ("plain forward", "all maps", "statistics")


def forward(model: LVLM, inputs: Inputs) -> Tensor:
    """A plain forward pass."""
    with torch.no_grad():
        return model.hf(**inputs.kwargs(), use_cache=False, logits_to_keep=1).logits


def hooked(model: LVLM, inputs: Inputs) -> list[Tensor]:
    """The head outputs of every layer by plain hooks, as anyone would take them without a library."""
    kept: list[Tensor] = []
    handles = [
        model.out_proj(layer).register_forward_pre_hook(lambda _, args: kept.append(args[0].clone()))
        for layer in range(model.n_layers)
    ]
    try:
        forward(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return kept


def captioned(model: LVLM, batch: int, tokens: int) -> tuple[Inputs, list[Tensor]]:
    """A batch, and texts of so many tokens after it; what they say does not matter."""
    inputs = inputs_of(model, batch)
    return inputs, [torch.arange(10, 10 + tokens, device=model.device) % 400 + 5 for _ in range(batch)]


def capture(bench: Bench) -> list[Line]:
    """All head outputs in one pass, by interp (through nnsight) and by plain hooks, against a plain forward pass."""
    found = []
    for batch in bench.size.batches:
        inputs, texts = captioned(bench.model, batch, bench.tokens)
        whole = inputs.extended(texts)
        runs = {
            "plain": partial(forward, bench.model, whole),
            "read": partial(read, bench.model, whole, "z"),
            "hooks": partial(hooked, bench.model, whole),
        }
        times, gpu = bench.alternating(runs), bench.model.device.type == "cuda"
        found.append(ratio(f"interp.read, batch {batch}", times["read"], times["plain"], 1.15, gpu))
        found.append(ratio(f"plain hooks, batch {batch}", times["hooks"], times["plain"], None, gpu))
    return found


def _kept(_: int, z: Tensor) -> None:
    z.clone()


def nnsight_price(bench: Bench) -> list[Line]:
    """A traced pass that reads every head output, against the same by plain hooks, on models of growing width."""
    found = []
    for width in (64,) if bench.size.name.startswith("tiny") else (64, 192, 512, 1024):
        model = small(8, 8, width)
        inputs = inputs_of(model, 1)
        runs: dict[str, Any] = {
            "hooks": partial(hooked, model, inputs),
            "traced": partial(run_with_edits, model, inputs, {"z": _kept}),
        }
        times = alternating(runs, bench.repeats, model.synchronize)
        found.append(ratio(f"width {width}", times["traced"], times["hooks"]))
    return found


def t_vhd(bench: Bench) -> list[Line]:
    """T-VHD of a caption against two forward passes, and against VHD at each step."""
    model, tokens = bench.model, bench.tokens
    inputs, texts = captioned(model, 1, tokens)
    with_image, without = inputs.extended(texts), image_free(model, inputs).extended(texts)

    def two_passes() -> None:
        forward(model, with_image)
        forward(model, without)

    steps = range(0, tokens, max(1, tokens // 4))

    def step_by_step() -> None:
        for step in steps:
            vhd(model, inputs.extended([texts[0][:step]]) if step else inputs)

    runs = {"two": two_passes, "ours": lambda: token_vhd(model, inputs, texts)}
    times, gpu = bench.alternating(runs), model.device.type == "cuda"
    found = [ratio(f"{tokens} tokens, two passes", times["ours"], times["two"], 1.2, gpu)]
    slow = alternating({"ours": runs["ours"], "steps": step_by_step}, min(2, bench.repeats), model.synchronize, warm=0)
    each = tokens / len(steps)
    value, wall = (slow["steps"].against(slow["ours"], wall=w) for w in (gpu, True))
    scaled = [Spread(*(each * x for x in vars(v).values())) for v in (value, wall)]
    case = f"{tokens} tokens, step by step ({len(steps)} steps timed, times {each:g})"
    return [*found, Line(case, scaled[0], scaled[1], 20.0, lower=False, unit="x as fast")]


def ablation(bench: Bench) -> list[Line]:
    """Every head silenced in turn, against a whole pass for each."""
    tokens = min(bench.tokens, 32)
    inputs, texts = captioned(bench.model, 1, tokens)
    runs = {
        "slow": lambda: exact_contributions(bench.model, inputs, texts, step_by_step=True),
        "ours": lambda: exact_contributions(bench.model, inputs, texts),
    }
    times = alternating(runs, min(2, bench.repeats), bench.model.synchronize, warm=0)
    gpu = bench.model.device.type == "cuda"
    value, wall = (times["slow"].against(times["ours"], wall=w) for w in (gpu, True))
    heads = bench.model.n_layers * bench.model.n_heads
    return [Line(f"{heads} heads, {tokens} tokens", value, wall, 3.0, lower=False, unit="x as fast")]


def attribution(bench: Bench) -> list[Line]:
    """Attribution patching of all heads for a token, against a pass for each head, and against the fast exact way."""
    model = small(2, 4, 64) if bench.size.name.startswith("tiny") else small(16, 16, 256)
    inputs, texts = captioned(model, 1, 8 if bench.size.name.startswith("tiny") else 24)
    runs: dict[str, Any] = {
        "slow": lambda: exact_contributions(model, inputs, texts, step_by_step=True),
        "fast": lambda: exact_contributions(model, inputs, texts),
        "patching": lambda: attributed_contributions(model, inputs, texts, [[3]]),
    }
    times = alternating(runs, 1, model.synchronize, warm=0)
    found = []
    for name, aim in (("slow", 50.0), ("fast", None)):
        value, wall = (times[name].against(times["patching"], wall=w) for w in (False, True))
        against = "a pass for each" if name == "slow" else "interp's exact way"
        case = f"{model.n_layers * model.n_heads} heads, {against}"
        found.append(Line(case, value, wall, aim, lower=False, unit="x as fast"))
    return found


def attention(bench: Bench) -> list[Line]:
    """Sink mass and image mass without maps: time against eager with all maps and against plain sdpa; memory."""
    tiny = bench.size.name.startswith("tiny")
    positions, layers = (256, 2) if tiny else (1024, 4)
    measured: dict[str, list[dict[str, float]]] = {what: [] for what in RUNS_OF_MEMORY}
    for _ in range(1 if tiny else bench.repeats):
        for what, rows in measured.items():
            rows.append(_in_a_process(what, positions, layers, 1 if tiny else 3))
    case, found = f"{positions} positions, {layers} layers of 16 heads", []
    for name, key, other, aim in (
        ("extra memory, eager with maps", "extra_mib", "all maps", 1 / 8),
        ("time, eager with maps", "cpu_seconds", "all maps", 1.0),
        ("time, plain sdpa", "cpu_seconds", "plain forward", 3.0),
    ):
        pairs = zip(measured["statistics"], measured[other], strict=True)
        value = Spread.of([ours[key] / max(theirs[key], 1e-9) for ours, theirs in pairs])
        found.append(Line(f"{case}: {name}", value, None, aim, more={"measured": measured}))
    return found


def _in_a_process(what: str, positions: int, layers: int, repeats: int) -> dict[str, float]:
    """Memory can be told apart in a process of its own only."""
    args = [what, str(positions), str(layers), "cpu", str(repeats)]
    done = subprocess.run(
        [sys.executable, "-m", "interp.bench.attention", *args], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def growth(bench: Bench) -> list[Line]:
    """How the cost of head outputs and of attention statistics grows: a doubling of each thing, times so much."""
    tiny = bench.size.name.startswith("tiny")
    base: dict[str, int] = {"length": 64 if tiny else 512, "layers": 2, "heads": 4, "batch": 2}
    found = []

    def built(shape: dict[str, int]) -> tuple[LVLM, Inputs]:
        model = small(shape["layers"], shape["heads"], 128, positions=2048)
        ids = torch.arange(shape["length"]).expand(shape["batch"], -1) % 400 + 5
        return model, model.tokens(ids)

    models = {"base": built(base)} | {k: built({**base, k: 2 * v}) for k, v in base.items()}
    for what, run in (("forward", forward), ("read z", _read_z), ("attention statistics", _statistics)):
        runs = {name: partial(run, *m) for name, m in models.items()}
        times = alternating(runs, 1 if tiny else bench.repeats, lambda: None)
        for name in base:
            found.append(ratio(f"{what}: {name} {base[name]} to {2 * base[name]}", times[name], times["base"]))
    return found


def _read_z(model: LVLM, inputs: Inputs) -> Any:
    return read(model, inputs, "z")


def _statistics(model: LVLM, inputs: Inputs) -> Any:
    return attention_statistics(model, inputs, with_sparsity=False)
