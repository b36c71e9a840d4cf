"""Rows about writing captions: each method against greedy decoding, the same number of tokens forced."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from interp.bench.clock import alternating
from interp.bench.rows import Bench, Line, ratio
from interp.bench.sizes import inputs_of, small, testbed_samples
from interp.evaluate.objects import ObjectParser
from interp.experiments.captions import StudyConfig, caption_records
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


def compiled(bench: Bench) -> list[Line]:
    """Greedy decoding with compiled steps against greedy, after the call that compiles; whether texts are alike."""
    model, found = bench.model, []

    def run(inputs: Inputs, fast: bool) -> list[list[int]]:
        model.compiled = fast
        try:
            out = model.generate(inputs, max_new_tokens=bench.tokens, min_new_tokens=bench.tokens)
        finally:
            model.compiled = False
        return [tokens.tolist() for tokens in out.tokens]

    for batch in bench.size.batches:
        inputs = inputs_of(model, batch)
        start = time.perf_counter()
        fast = run(inputs, True)
        first = round(time.perf_counter() - start, 1)
        alike = sum(a == b for a, b in zip(fast, run(inputs, False), strict=True))
        times = bench.alternating({"greedy": partial(run, inputs, False), "compiled": partial(run, inputs, True)})
        more = {"seconds_of_first_call": first, "texts_alike": alike}
        found.append(ratio(f"batch {batch}", times["compiled"], times["greedy"], 0.9, _on_gpu(bench), **more))
    return found


def methods(bench: Bench, aims: dict[str, float | None], batches: tuple[int, ...] | None = None) -> list[Line]:
    """Methods against greedy, all in turns."""
    found = []
    for batch in batches or bench.size.batches:
        inputs = inputs_of(bench.model, batch)
        runs: dict[str, Run] = {"greedy": partial(written, bench.model, inputs, bench.tokens)}
        runs |= {
            m: partial(written, bench.model, inputs, bench.tokens, m) for m in aims if batch > 1 or "resample" not in m
        }
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
        runs = {
            m: partial(written, bench.model, inputs, bench.tokens, m)
            for m in ("greedy", "vcd", "vasparse:preset=paper")
        }
        times = bench.alternating(runs)
        mine, gpu = times["vasparse:preset=paper"], _on_gpu(bench)
        found.append(ratio(f"batch {batch}, greedy", mine, times["greedy"], 1.2, gpu))
        found.append(ratio(f"batch {batch}, VCD", mine, times["vcd"], 0.6, gpu))
    return found


def opera(bench: Bench) -> list[Line]:
    """OPERA against transformers' beam search with as many beams, and against greedy."""
    found = []
    for batch in bench.size.batches:
        inputs = inputs_of(bench.model, batch)
        tokens = min(bench.tokens, 48)
        runs: dict[str, Run] = {
            "beams": partial(plain, bench.model, inputs, tokens, num_beams=5),
            "opera": partial(written, bench.model, inputs, tokens, "opera"),
            "greedy": partial(written, bench.model, inputs, tokens),
        }
        times, case = bench.alternating(runs, warm=0), f"batch {batch}, {tokens} tokens"
        found.append(ratio(case, times["opera"], times["beams"], 1.5, _on_gpu(bench)))
        found.append(ratio(f"{case}, greedy", times["opera"], times["greedy"], None, _on_gpu(bench)))
    return found


EVICTING = ("h2o", "snapkv", "streaming-llm", "fastv:layer=1")
LONG = 2000
"""Image tokens of the rows about keys that leave the cache."""


def long_prompt(model: LVLM, batch: int, n_image: int) -> Inputs:
    """A prompt of so many image tokens and 32 others, without a picture: for dropping keys it needs none."""
    head = torch.full((batch, n_image), model.image_token_id or 0)
    tail = torch.arange(10, 42).expand(batch, -1)
    inputs = model.tokens(torch.cat([head, tail], 1))
    image = torch.arange(n_image + 32).expand(batch, -1) < n_image
    return replace(inputs, image_mask=image.to(model.device))


def evicting(bench: Bench) -> list[Line]:
    """Methods that drop keys, on long prompts: time and memory against greedy, batch 16."""
    tiny = bench.size.name.startswith("tiny")
    n_image, batch = (48, 2) if tiny else (LONG, 16)
    model = bench.model
    if model.device.type == "cpu":
        model = small(2, 4, 64 if tiny else 128, positions=n_image + 32 + bench.tokens)
    inputs = long_prompt(model, batch, n_image)
    runs = {m: partial(written, model, inputs, bench.tokens, m) for m in ("greedy", *EVICTING)}
    times = alternating(runs, min(bench.repeats, 2), model.synchronize, warm=0)
    kept = {m: run().cache_bytes for m, run in runs.items()} if tiny else _bytes(model, inputs, bench.tokens)
    found = []
    for m in EVICTING:
        case = f"{m}, batch {batch}, {n_image} image tokens"
        share = round(kept[m] / kept["greedy"], 3)
        found.append(ratio(case, times[m], times["greedy"], 1.0, _on_gpu(bench), cache_of_greedy=share))
    return found


def _bytes(model: LVLM, inputs: Inputs, tokens: int) -> dict[str, int]:
    """What the cache takes at the end, from two rows."""
    few = replace(
        inputs,
        input_ids=inputs.input_ids[:2],
        attention_mask=inputs.attention_mask[:2],
        position_ids=inputs.position_ids[:2],
        image_mask=inputs.image_mask[:2],
        frame_mask=inputs.frame_mask[:2],
    )
    return {m: written(model, few, tokens, m).cache_bytes for m in ("greedy", *EVICTING)}


def study(bench: Bench) -> list[Line]:
    """Images a second of a study's captions, batches of 16 against one at a time."""
    samples = testbed_samples(16 if bench.size.name not in ("tiny", "tiny-7b") else 2)
    parser = ObjectParser.coco()
    config = StudyConfig(max_new_tokens=bench.tokens)

    def captions(size: int) -> None:
        for start in range(0, len(samples), size):
            caption_records(bench.model, samples[start : start + size], parser, config)

    times = bench.alternating({"one": partial(captions, 1), "many": partial(captions, len(samples))}, warm=0)
    value = times["one"].against(times["many"], wall=_on_gpu(bench))
    wall = times["one"].against(times["many"], wall=True)
    return [Line(f"batch {len(samples)} against 1", value, wall, 3.0, lower=False, unit="x images a second")]
