"""Rows about writing captions: each method against greedy decoding, the same number of tokens forced."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from interp.bench.rows import Bench, Line, ratio
from interp.bench.sizes import inputs_of
from interp.interventions import parse_method
from interp.models import LVLM, Generation, Inputs

Run = Callable[[], Any]


def written(model: LVLM, inputs: Inputs, tokens: int, method: str = "greedy", **options: Any) -> Generation:
    """Captions of exactly so many tokens."""
    with parse_method(method)(model):
        return model.generate(inputs, max_new_tokens=tokens, min_new_tokens=tokens, **options)


def plain(model: LVLM, inputs: Inputs, tokens: int, **options: Any) -> Any:
    """The same by transformers alone."""
    settings: dict[str, Any] = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "num_beams": 1}
    with torch.no_grad():
        return model.hf.generate(**inputs.kwargs(), pad_token_id=inputs.pad_token_id, **settings | options)


def _on_gpu(bench: Bench) -> bool:
    return bench.model.device.type == "cuda"


def greedy(bench: Bench) -> list[Line]:
    """Our greedy decoding against transformers' own on the same model."""
    found = []
    for batch in bench.size.batches:
        inputs = inputs_of(bench.model, batch)
        times = bench.alternating(
            {
                "plain": lambda inputs=inputs: plain(bench.model, inputs, bench.tokens),
                "ours": lambda inputs=inputs: written(bench.model, inputs, bench.tokens),
            }
        )
        per_second = batch * bench.tokens / sorted(times["ours"].wall)[bench.repeats // 2]
        case = f"batch {batch}"
        found.append(
            ratio(case, times["ours"], times["plain"], 1.02, _on_gpu(bench), tokens_per_second=round(per_second, 1))
        )
    return found


def methods(bench: Bench, aims: dict[str, float | None], batches: tuple[int, ...] | None = None) -> list[Line]:
    """Methods against greedy, all in turns."""
    found = []
    for batch in batches or bench.size.batches:
        inputs = inputs_of(bench.model, batch)
        runs: dict[str, Run] = {"greedy": partial(written, bench.model, inputs, bench.tokens)}
        runs |= {m: partial(written, bench.model, inputs, bench.tokens, m) for m in aims if batch > 1 or "resample" not in m}
        times = bench.alternating(runs)
        found += [
            ratio(f"{m}, batch {batch}", times[m], times["greedy"], aims[m], _on_gpu(bench)) for m in runs if m in aims
        ]
    return found


def vhr(bench: Bench) -> list[Line]:
    """VHR, its selection included."""
    return methods(bench, {"vhr": 1.15 if bench.size.name == "testbed" else 1.05})


def edits(bench: Bench) -> list[Line]:
    """Every kind of head edit that needs no second stream, and those that do, for comparison."""
    heads = "+".join(f"L{layer}H{layer % bench.model.n_heads}" for layer in range(bench.model.n_layers))
    aims: dict[str, float | None] = {f"edit:heads={heads}:op={op}": 1.05 for op in ("scale", "zero")}
    aims[f"edit:heads={heads}:op=scale:steps=generated"] = 1.05
    aims[f"edit:heads={heads}:op=image_free"] = None
    return methods(bench, aims)


def two_streams(bench: Bench) -> list[Line]:
    """Methods that read the text twice, with the picture and with a weaker one."""
    return methods(bench, {"vcd": 1.9, "m3id": 1.9, "pai": 1.9})


def vasparse(bench: Bench) -> list[Line]:
    """VASparse as its paper sets it, against greedy and against VCD."""
    found = []
    for batch in bench.size.batches:
        inputs = inputs_of(bench.model, batch)
        runs = {m: partial(written, bench.model, inputs, bench.tokens, m) for m in ("greedy", "vcd", "vasparse:preset=paper")}
        times = bench.alternating(runs)
        mine, gpu = times["vasparse:preset=paper"], _on_gpu(bench)
        found.append(ratio(f"batch {batch}, greedy", mine, times["greedy"], 1.2, gpu))
        found.append(ratio(f"batch {batch}, VCD", mine, times["vcd"], 0.6, gpu))
    return found


def opera(bench: Bench) -> list[Line]:
    """OPERA against transformers' beam search with as many beams."""
    found = []
    for batch in bench.size.batches:
        inputs = inputs_of(bench.model, batch)
        tokens = min(bench.tokens, 48)
        runs: dict[str, Run] = {
            "beams": partial(plain, bench.model, inputs, tokens, num_beams=5),
            "opera": partial(written, bench.model, inputs, tokens, "opera"),
        }
        times = bench.alternating(runs, warm=0)
        found.append(ratio(f"batch {batch}, {tokens} tokens", times["opera"], times["beams"], 1.5, _on_gpu(bench)))
    return found


EVICTING = {
    "h2o": "h2o",
    "snapkv": "snapkv",
    "streaming-llm": "streaming-llm",
    "fastv": "fastv",
    "vasparse evicting": "vasparse:when=evict:scope=all:keep=0.5:alpha=0:beta=0:dropped=discard",
}
