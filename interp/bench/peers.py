"""Peers on the same weights, run by hand in an environment that has them: they do not go with interp's dependencies.

    python -m venv /tmp/peers && /tmp/peers/bin/pip install --no-deps transformer-lens   # beside interp's own packages
    HF_HUB_OFFLINE=1 /tmp/peers/bin/python -m interp.bench.peers

TransformerLens takes all `hook_z` of the bundled testbed with `run_with_cache`; interp reads `z`; a plain forward pass
of the same model is what both are compared with.
"""

import json
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from interp.bench.clock import alternating, machine
from interp.bench.looking import forward, hooked
from interp.bench.rows import ratio
from interp.bench.sizes import SIZES, inputs_of
from interp.models import read
from interp.testbed import WEIGHTS

REPEATS = 7


def main() -> None:
    """Measure, print, and write `figures/bench/peers.json`."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    model, other = (SIZES["testbed"].make(device) for _ in range(2))
    inputs = inputs_of(model, 1)
    bridge: Any = import_module("transformer_lens.model_bridge").TransformerBridge
    lens = bridge.boot_transformers(str(WEIGHTS / "testbed"), hf_model=other.hf, tokenizer=other.tokenizer)
    kwargs = inputs.kwargs()
    ids = kwargs.pop("input_ids")

    @torch.no_grad()
    def cached() -> Any:
        return lens.run_with_cache(
            ids, names_filter=lambda name: name.startswith("blocks.") and name.endswith("hook_z"), **kwargs
        )[1]

    ours = read(model, inputs, "z")["z"]
    theirs = torch.stack([z.reshape(ours[:, 0].shape) for z in cached().values()], 1)
    runs: dict[str, Any] = {
        "forward": partial(forward, model, inputs),
        "interp": partial(read, model, inputs, "z"),
        "hooks": partial(hooked, model, inputs),
        "TransformerLens": cached,
    }
    times = alternating(runs, REPEATS, lambda: None)
    lines = [ratio(name, times[name], times["forward"]).plain() for name in runs if name != "forward"]
    found = {
        "what": "head outputs of all layers, batch 1, against a plain forward pass",
        "largest_difference_from_transformer_lens": float((ours - theirs).abs().max()),
        "transformer_lens": version("transformer-lens"),
        "machine": machine(device),
        "lines": lines,
    }
    print(json.dumps(found, indent=1))
    Path("figures/bench/peers.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
