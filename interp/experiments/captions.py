"""The study: captions with each method, their hallucinations, T-VHD of the words, one table and three figures."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from interp.data import Data, Sample, open_data
from interp.evaluate.alignment import sentences, token_ends, tokens_of
from interp.evaluate.chair import score_caption
from interp.evaluate.objects import ObjectParser
from interp.experiments.engine import Run, Shard, in_order
from interp.experiments.records import Manifest, device_name
from interp.experiments.report import Summary, write_report
from interp.interventions import EditHeads, Greedy, Method, parse_method
from interp.metrics.vhd import default_top_k, token_divergence
from interp.models import LVLM, Generation, Inputs, load
from interp.trace.divergence import TokenTrace, token_vhd

BASELINE = "greedy"


@dataclass(frozen=True)
class StudyConfig:
    """Settings of `interp study`; every field is an option of the command."""

    model: str = "testbed"
    """A bundled model (testbed, testbed-sink), a folder, or a hub id."""
    data: str = "testbed:broken"
    """testbed:broken, testbed:biased, testbed:unbiased, or coco:FOLDER with annotations/ and images."""
    split: str | None = None
    """Which split; the testbed's default is test, a COCO folder's its only one."""
    limit: int | None = 200
    """How many images, drawn by seed from the sorted ids; None for all."""
    methods: str = "greedy,vhr,random-heads,bottom-heads"
    """Comma-separated methods; parameters follow a colon, as in vhr:alpha=1.5."""
    ids: str | None = None
    """File of image ids in place of limit and seed: one a line, a JSON list, or the manifest.json of another run."""
    ranking: str | None = None
    """heads.npz of `interp causal`, for edits that choose heads: edit:heads=top:share=0.1:by=vhd."""
    seed: int = 0
    """Seed of the sample of images and of the bootstrap; random heads have their own, random-heads:seed=1."""
    prompt: str = "Please describe this image in detail."
    """What the model is asked."""
    max_new_tokens: int = 128
    """Length cap of a caption, in tokens."""
    top_k: int | None = None
    """Heads of a layer that T-VHD sums over; None for an eighth of them."""
    batch_size: int = 20
    """Images generated at once."""
    workers: int = 0
    """Processes that read images ahead."""
    device: str = "cpu"
    """Where the model runs: cpu, cuda, cuda:1, ...; under accelerate launch, cuda is one device a process."""
    device_map: str | None = None
    """auto spreads a model too large for one device."""
    attn_implementation: str | None = None
    """sdpa, eager, flash_attention_2, ...; the model's own default if None."""
    dtype: str = "float32"
    """Type of the weights: float32, bfloat16 or float16."""
    out: str | None = None
    """Folder of the results; a name made of the settings under runs/ if None."""

    def __post_init__(self) -> None:
        for name in ("limit", "max_new_tokens", "batch_size", "top_k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is a number of at least 1, got {value}")
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype is float32, bfloat16 or float16, got {self.dtype!r}")
        names = [m.strip() for m in self.methods.split(",")]
        if len(set(names)) != len(names):
            raise ValueError(f"each method can be named once, got {self.methods!r}")
        for name in names:
            parse_method(name)

    def load(self, shard: Shard) -> LVLM:
        """Load the model, on the device of this process."""
        named = ("device_map", "attn_implementation")
        options: dict[str, Any] = {name: getattr(self, name) for name in named if getattr(self, name) is not None}
        if self.device_map is None:
            options["device"] = shard.device(self.device)
        return load(self.model, dtype=self.dtype, **options)

    @property
    def parsed_methods(self) -> dict[str, Method]:
        """The methods by the name they were given; greedy comes first, because the others are compared with it."""
        names = dict.fromkeys([BASELINE, *(m.strip() for m in self.methods.split(","))])
        methods = {name: parse_method(name) for name in names}
        for name, method in methods.items():
            if isinstance(method, EditHeads) and self.ranking and not method.ranking:
                methods[name] = replace(method, ranking=self.ranking)
        return methods


def manifest_of(config: StudyConfig, model: LVLM, data: Data, top_k: int, methods: Mapping[str, Method]) -> Manifest:
    """What decides the results of a study."""
    return Manifest.of(
        model=config.model,
        weights=model.fingerprint,
        data=config.data,
        split=config.split,
        image_ids=list(data.image_ids),
        methods={name: repr(method) for name, method in methods.items()},
        decoding="greedy",
        seed=config.seed,
        prompt=config.prompt,
        max_new_tokens=config.max_new_tokens,
        top_k=top_k,
        batch_size=config.batch_size,
        dtype=config.dtype,
        device=device_name(model.device),
        attention=model.backend,
    )


def _mentions(text: str, ends: Sequence[int], truth: frozenset[str], parser: ObjectParser) -> list[dict[str, Any]]:
    """The object mentions of a caption, with the tokens that wrote them."""
    score = score_caption(text, truth, parser)
    found = []
    for mention, wrong in zip(score.mentions, score.hallucinated, strict=True):
        span = tokens_of(ends, mention.start, mention.end)
        assert span, f"no token wrote {text[mention.start : mention.end]!r}"
        found.append(
            {
                "object": mention.category,
                "text": text[mention.start : mention.end],
                "hallucinated": wrong,
                "start": mention.start,
                "end": mention.end,
                "token": span.start,
                "n_tokens": len(span),
            }
        )
    return found


def _looked_into(trace: TokenTrace, text: str, ends: Sequence[int], top_k: int) -> dict[str, Any]:
    """What a trace adds to a record: T-VHD and probability by token, the first VHD map, the sentences' tokens."""
    spans = [tokens_of(ends, start, end) for start, end in sentences(text)]
    return {
        "t_vhd": [round(v, 4) for v in token_divergence(trace.vhd, top_k).tolist()],
        "probability": [round(v, 6) for v in trace.probability.tolist()],
        "vhd": [[round(v, 4) for v in row] for row in trace.vhd[0].tolist()],
        "sentences": [[span.start, span.stop] for span in spans if span],
    }


def _traces(model: LVLM, inputs: Inputs, generation: Generation) -> list[TokenTrace | None]:
    """The trace of each caption, None where it is empty."""
    # an empty caption is traced over a token of its prompt, and that is thrown away
    whole = [tokens if len(tokens) else inputs.input_ids[row, -1:] for row, tokens in enumerate(generation.tokens)]
    traces = token_vhd(model, inputs, whole)
    return [trace if len(tokens) else None for trace, tokens in zip(traces, generation.tokens, strict=True)]


def caption_records(
    model: LVLM,
    samples: Sequence[Sample],
    parser: ObjectParser,
    config: StudyConfig | None = None,
    name: str = BASELINE,
    method: Method | None = None,
) -> list[dict[str, Any]]:
    """Caption a batch with one method (greedy if None) and, for greedy, look inside: one JSON record an image."""
    config = StudyConfig() if config is None else config
    top_k = default_top_k(model.n_heads) if config.top_k is None else config.top_k
    inputs = model.inputs([s.image for s in samples], config.prompt)
    model.synchronize()
    start = time.perf_counter()
    with (method or Greedy())(model) as steered:
        generation = model.generate(inputs, max_new_tokens=config.max_new_tokens)
    model.synchronize()
    seconds = (time.perf_counter() - start) / len(samples)
    traces = _traces(model, inputs, generation) if name == BASELINE else [None] * len(samples)
    decode = partial(model.tokenizer.decode, skip_special_tokens=True)
    records = []
    for row, (sample, text) in enumerate(zip(samples, generation.texts, strict=True)):
        tokens, trace = generation.tokens[row].tolist(), traces[row]
        ends = token_ends(decode, tokens)
        record: dict[str, Any] = {
            "image_id": sample.image_id,
            "method": name,
            "caption": text,
            "mentions": _mentions(text, ends, sample.truth, parser),
            "truth": sorted(sample.truth),
            "n_tokens": len(tokens),
            "seconds": round(seconds, 4),
            "kv_bytes": generation.cache_bytes // len(samples),
            "tokens": tokens,
        }
        if steered.heads:
            record["heads"] = steered.heads[-1].heads[row].nonzero().tolist()
        if trace is not None:
            record |= _looked_into(trace, text, ends, top_k)
        records.append(record)
    return records


def _warm_up(model: LVLM, method: Method, sample: Sample, prompt: str) -> None:
    """Two tokens nobody times: whatever is set up at first use does not count against the first batch."""
    with method(model):
        model.generate(model.inputs([sample.image], prompt), max_new_tokens=2)


def run_study(config: StudyConfig, more: Mapping[str, Method] | None = None) -> Summary:
    """Run a study, or go on with one that was interrupted; results lie in `config.out` as they come.

    `more` are methods, by name, beside those of the configuration.  Under a launcher of several processes the others
    than the first stop when all is written (SystemExit 0).
    """
    summary = _run(config, more or {})
    if summary is None:
        sys.exit(0)
    return summary


def _data(config: StudyConfig, parser: ObjectParser) -> Data:
    data = open_data(config.data, config.split, parser)
    return data.limited(config.limit, config.seed) if config.ids is None else data.chosen(Path(config.ids))


def _run(config: StudyConfig, more: Mapping[str, Method]) -> Summary | None:
    parser, shard = ObjectParser.coco(), Shard.current(config.device)
    data = _data(config, parser)
    model = config.load(shard)
    top_k = default_top_k(model.n_heads) if config.top_k is None else config.top_k
    if top_k > model.n_heads:
        raise ValueError(f"top_k is at most the {model.n_heads} heads of a layer of this model, got {top_k}")
    methods = config.parsed_methods | dict(more)
    for method in methods.values():
        method.check(model)  # settings that do not fit the model are refused before anything is written
    manifest = manifest_of(config, model, data, top_k, methods)
    slug = f"{Path(config.model).name}-{config.data}".replace(":", "-").replace("/", "-")
    out = Path(config.out) if config.out else Path("runs") / f"{slug}-{manifest.digest}"
    warm: set[str] = set()

    def work(name: str, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        if name not in warm:
            _warm_up(model, methods[name], samples[0], config.prompt)
            warm.add(name)
        return caption_records(model, samples, parser, config, name, methods[name])

    with Run.opened(out, manifest, shard, "captions", "image_id") as run:
        options: Any = {"batch_size": config.batch_size, "workers": config.workers, "unit": "caption"}
        run.work_through(data.image_ids, methods, data.load, work, **options)
        rows = run.joined(in_order(data.image_ids, methods))
        if rows is None:
            return None
        return write_report(rows, list(methods), out, top_k=top_k, seed=config.seed)
