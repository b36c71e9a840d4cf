"""One turn of kvpress or of interp in its own environment: keys that leave the cache, beside plain greedy decoding.

`interp.bench.peers` runs this file as a script, under the Python of each; so it imports neither until it is told which.
"""

import json
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

NEW_TOKENS = 64
KEPT, WINDOW, SINKS = 0.5, 64, 4
"""Of the prompt's keys; SnapKV's last queries, whose keys all stay; StreamingLLM's first tokens."""
Written = tuple[list[int], int]
"""New tokens, and the bytes of keys and values at the end."""


def plain(model: Any, ids: Tensor, tokens: int) -> Written:
    """Greedy decoding by transformers alone, of exactly so many tokens."""
    settings = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "return_dict_in_generate": True}
    out = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    cache = out["cache" if "cache" in out else "past_key_values"]
    return out.sequences[0, ids.shape[1] :].tolist(), sum(x.nbytes for y in cache.layers for x in (y.keys, y.values))


def kvpress(_: Path, model: Any, ids: Tensor) -> dict[str, Callable[[int], Written]]:
    """As kvpress' pages use a press: hooks on the same model, around its `generate`."""
    presses: Any = import_module("kvpress")

    def run(press: Any) -> Callable[[int], Written]:
        def written(tokens: int) -> Written:
            with press(model):
                return plain(model, ids, tokens)

        return written

    return {
        "SnapKV": run(presses.SnapKVPress(compression_ratio=1 - KEPT, window_size=WINDOW, kernel_size=5)),
        "StreamingLLM": run(presses.StreamingLLMPress(compression_ratio=1 - KEPT, n_sink=SINKS)),
    }


def interp(folder: Path, _: Any, ids: Tensor) -> dict[str, Callable[[int], Written]]:
    """The same by interp, with as many keys of the prompt kept."""
    model = import_module("interp.models").load(folder, check=False)
    parse, n = import_module("interp.interventions").parse_method, ids.shape[1]
    kept = int(KEPT * n)

    def run(method: str) -> Callable[[int], Written]:
        def written(tokens: int) -> Written:
            with parse(method)(model):
                out = model.generate(model.tokens(ids), max_new_tokens=tokens, min_new_tokens=tokens)
            return out.tokens[0].tolist(), out.cache_bytes

        return written

    return {
        "SnapKV": run(f"snapkv:keep={(kept - WINDOW) / (n - WINDOW)}:window={WINDOW}:pool=5"),
        "StreamingLLM": run(f"streaming-llm:sinks={SINKS}:window={kept - SINKS}"),
    }


def main(side: str, folder: Path, ids: Tensor) -> dict[str, Any]:
    """Processor seconds, wall seconds, tokens and bytes of each, after a short run of each that does not count."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    runs = {"greedy": lambda tokens: plain(model, ids, tokens)}
    runs |= {"interp": interp, "kvpress": kvpress}[side](folder, model, ids)
    found: dict[str, Any] = {}
    for run in runs.values():
        run(2)
    for name, run in runs.items():
        wall, cpu = time.perf_counter(), time.process_time()
        tokens, n_bytes = run(NEW_TOKENS)
        seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        found[name] = {**seconds, "tokens": tokens, "cache_bytes": n_bytes}
    return {"versions": {name: version(name) for name in ("torch", "transformers")}, "runs": found}


if __name__ == "__main__":
    which, where, text = sys.argv[1:]
    print(json.dumps(main(which, Path(where), torch.tensor([json.loads(text)]))))
