"""Peers on the same weights, run by hand in an environment that has them: they do not go with interp's dependencies.

    python -m venv /tmp/peers && /tmp/peers/bin/pip install --no-deps transformer-lens   # beside interp's own packages
    HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=PASSIVE /tmp/peers/bin/python -m interp.bench.peers

All take the head outputs of every layer of the bundled testbed: TransformerLens all `hook_z` with `run_with_cache`,
nnsight the input of every `o_proj` in a trace as its own pages write one, interp `z`; hooks of torch for comparison.
Each has a copy of the model of its own; the reference is a plain forward pass of one that nothing wraps.

    python -m venv /tmp/kvpress && /tmp/kvpress/bin/pip install torch==2.13.0 kvpress    # an older transformers
    OMP_WAIT_POLICY=PASSIVE python -m interp.bench.peers /tmp/kvpress/bin/python ~/.cache/interp/smollm2

kvpress' SnapKV and StreamingLLM against interp's on the weights of a folder, each beside plain greedy decoding in its
own environment, one process a turn (`interp.bench.presses`).
"""

import json
import os
import subprocess
import sys
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoTokenizer

from interp.bench import presses
from interp.bench.clock import Spread, alternating, machine
from interp.bench.looking import hooked
from interp.bench.rows import ratio
from interp.bench.sizes import SIZES, inputs_of
from interp.models import read
from interp.testbed import WEIGHTS

REPEATS = 15
OUT = Path("figures/bench/peers.json")
TURNS, PROMPT_TOKENS = 3, 2000
PROMPT = Path("docs/pages")
"""Pages whose first tokens are the long prompt."""


def head_outputs() -> None:
    """Take the head outputs of every layer by each."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    model, other = (SIZES["testbed"].make(device) for _ in range(2))
    place: dict[str, Any] = {"pretrained_model_name_or_path": WEIGHTS / "testbed", "dtype": torch.float32}
    plain, wrapped = (AutoModelForImageTextToText.from_pretrained(**place).eval() for _ in range(2))
    bridge: Any = import_module("transformer_lens.model_bridge").TransformerBridge
    lens = bridge.boot_transformers(str(WEIGHTS / "testbed"), hf_model=other.hf, tokenizer=other.tokenizer)
    nnsight: Any = import_module("nnsight")
    traced = nnsight.NNsight(wrapped)
    inputs = inputs_of(model, 1)
    kwargs: dict[str, Any] = {**inputs.kwargs(), "use_cache": False, "logits_to_keep": 1}
    others = {name: value for name, value in kwargs.items() if name != "input_ids"}

    @torch.no_grad()
    def forward() -> Any:
        return plain(**kwargs)

    @torch.no_grad()
    def cached() -> list[Tensor]:
        wanted = lambda name: name.startswith("blocks.") and name.endswith("hook_z")  # noqa: E731 (as their pages do)
        return list(lens.run_with_cache(kwargs["input_ids"], names_filter=wanted, **others)[1].values())

    @torch.no_grad()
    def saved() -> list[Tensor]:
        with traced.trace(**kwargs):
            z = nnsight.save([layer.self_attn.o_proj.input for layer in traced.model.language_model.layers])
        return z

    ours = read(model, inputs, "z")["z"]
    runs: dict[str, Any] = {
        "forward": forward,
        "interp": partial(read, model, inputs, "z"),
        "hooks": partial(hooked, model, inputs),
        "nnsight": saved,
        "TransformerLens": cached,
    }
    apart = {name: _apart(ours, runs[name]()) for name in ("hooks", "nnsight", "TransformerLens")}
    times = alternating(runs, REPEATS, lambda: None)
    lines = [ratio(name, times[name], times["forward"]).plain() for name in runs if name != "forward"]
    found = {
        "what": "head outputs of all layers, batch 1, against a plain forward pass",
        "repeats": REPEATS,
        "largest_difference_from_interp": apart,
        "transformer_lens": version("transformer-lens"),
        "machine": machine(device),
        "lines": lines,
    }
    print(json.dumps(found, indent=1))
    record("head_outputs", found)


def _apart(ours: Tensor, theirs: list[Tensor]) -> float:
    """The largest difference of head outputs, layer by layer."""
    return max(float((ours[:, layer] - z.reshape(ours[:, layer].shape)).abs().max()) for layer, z in enumerate(theirs))


def evicting(python: str, folder: str) -> None:
    """Drop keys of a long prompt with kvpress, under its Python, and with interp, in turns."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in sorted(PROMPT.glob("*.md")))
    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"][:PROMPT_TOKENS]
    sides, before = {"interp": sys.executable, "kvpress": python}, machine(torch.device("cpu"))
    turns: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(TURNS):
        for side, found in turns.items():
            found.append(_turn(sides[side], side, folder, ids))
    rows = []
    for case in ("SnapKV", "StreamingLLM"):
        runs = {side: [turn["runs"][case] for turn in turns[side]] for side in sides}
        greedy = {side: [turn["runs"]["greedy"] for turn in turns[side]] for side in sides}
        for side in sides:
            pairs = list(zip(runs[side], greedy[side], strict=True))
            rows.append(
                {
                    "case": case,
                    "who": side,
                    "times_greedy": vars(Spread.of([mine["cpu"] / plain["cpu"] for mine, plain in pairs])),
                    "wall_times_greedy": vars(Spread.of([mine["wall"] / plain["wall"] for mine, plain in pairs])),
                    "seconds": median(mine["cpu"] for mine, _ in pairs),
                    "greedy_seconds": median(plain["cpu"] for _, plain in pairs),
                    "cache_of_greedy": pairs[0][0]["cache_bytes"] / pairs[0][1]["cache_bytes"],
                    "first_tokens_of_greedy": _alike(pairs[0][0]["tokens"], pairs[0][1]["tokens"]),
                    "first_tokens_of_the_other": _alike(*(runs[s][0]["tokens"] for s in sides)),
                }
            )
    found = {
        "what": f"keys that leave the cache, {len(ids)} prompt and {presses.NEW_TOKENS} new tokens, batch 1, greedy",
        "turns": TURNS,
        "versions": {side: turns[side][0]["versions"] for side in sides},
        "machine": before,
        "rows": rows,
    }
    print(json.dumps(found, indent=1))
    record("evicting", found)


def _turn(python: str, side: str, folder: str, ids: list[int]) -> dict[str, Any]:
    """One process of a side, on one thread; only interp's sees where interp lies."""
    env = {name: value for name, value in os.environ.items() if side == "interp" or name != "PYTHONPATH"}
    args = [python, "-P", presses.__file__, side, folder, json.dumps(ids)]
    done = subprocess.run(args, capture_output=True, text=True, check=True, env=env | {"OMP_NUM_THREADS": "1"})
    return json.loads(done.stdout.splitlines()[-1])


def _alike(mine: list[int], other: list[int]) -> int:
    """How many tokens two texts begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(mine, other, strict=True)) if a != b), len(mine))


def record(name: str, found: dict[str, Any]) -> None:
    """Put one comparison into the file, beside the others."""
    there = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {}
    OUT.write_text(json.dumps({**there, name: found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:]:
        evicting(*sys.argv[1:])
    else:
        head_outputs()
