"""The study: captions with each method, their hallucinations, T-VHD of the words, one table and three figures."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from interp.data import Data, Sample, open_data
from interp.evaluate.alignment import sentences, token_ends, tokens_of
from interp.evaluate.chair import CaptionScore, score_caption
from interp.evaluate.objects import ObjectParser
from interp.interventions import HeadSelection, Method, parse_method
from interp.metrics.vhd import default_top_k, token_divergence
from interp.models import LVLM, Generation, Inputs, load
from interp.records import Manifest, Records, device_name
from interp.report import Summary, write_report
from interp.trace import TokenTrace, token_vhd

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
    seed: int = 0
    """Seed of the sample of images and of the bootstrap."""
    prompt: str = "Please describe this image in detail."
    """What the model is asked."""
    max_new_tokens: int = 128
    """Length cap of a caption, in tokens."""
    top_k: int | None = None
    """Heads of a layer that T-VHD sums over; None for an eighth of them."""
    batch_size: int = 20
    """Images generated at once."""
    device: str = "cpu"
    """Where the model runs: cpu, cuda, cuda:1, ..."""
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

    @property
    def parsed_methods(self) -> dict[str, Method]:
        """The methods by the name they were given; greedy comes first, because the others are compared with it."""
        names = [m.strip() for m in self.methods.split(",")]
        return {name: parse_method(name) for name in dict.fromkeys([BASELINE, *names])}


def manifest_of(config: StudyConfig, model: LVLM, data: Data, top_k: int) -> Manifest:
    """What decides the results of a study."""
    return Manifest.of(
        model=config.model,
        data=config.data,
        split=config.split,
        image_ids=list(data.image_ids),
        methods={name: repr(method) for name, method in config.parsed_methods.items()},
        seed=config.seed,
        prompt=config.prompt,
        max_new_tokens=config.max_new_tokens,
        top_k=top_k,
        batch_size=config.batch_size,
        dtype=config.dtype,
        device=device_name(model.device),
        attention=model.hf.config.get_text_config()._attn_implementation,
    )


@dataclass(frozen=True)
class _Captioned:
    """A caption with everything that a record is made of."""

    sample: Sample
    method: str
    text: str
    tokens: list[int]
    seconds: float
    score: CaptionScore
    trace: TokenTrace | None
    heads: list[list[int]] | None


def _record(item: _Captioned, ends: list[int], top_k: int) -> dict[str, Any]:
    """The JSON record of a caption; a baseline caption carries its T-VHD, its probabilities and its first VHD map."""
    mentions = []
    for mention, wrong in zip(item.score.mentions, item.score.hallucinated, strict=True):
        span = tokens_of(ends, mention.start, mention.end)
        mentions.append(
            {
                "object": mention.category,
                "text": item.text[mention.start : mention.end],
                "hallucinated": wrong,
                "start": mention.start,
                "end": mention.end,
                "token": span.start,
                "n_tokens": len(span),
            }
        )
    record: dict[str, Any] = {
        "image_id": item.sample.image_id,
        "method": item.method,
        "caption": item.text,
        "mentions": mentions,
        "truth": sorted(item.sample.truth),
        "n_tokens": len(item.tokens),
        "seconds": round(item.seconds, 4),
    }
    if item.heads is not None:
        record["heads"] = item.heads
    if item.trace is not None:
        record["sentences"] = [
            [span.start, span.stop] for start, end in sentences(item.text) if (span := tokens_of(ends, start, end))
        ]
        record["t_vhd"] = [round(v, 4) for v in token_divergence(item.trace.vhd, top_k).tolist()]
        record["probability"] = [round(v, 6) for v in item.trace.probability.tolist()]
        record["vhd"] = [[round(v, 4) for v in row] for row in item.trace.vhd[0].tolist()]
    return record


def _generate(
    model: LVLM, method: Method, inputs: Inputs, max_new_tokens: int
) -> tuple[Generation, HeadSelection | None, float]:
    """Captions of a batch, the heads the method chose if it chose any, and the seconds for each image."""
    start = time.perf_counter()
    with method(model) as chosen:
        generation = model.generate(inputs, max_new_tokens=max_new_tokens)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    seconds = (time.perf_counter() - start) / len(inputs.input_ids)
    return generation, chosen[-1] if chosen else None, seconds


def _traces(model: LVLM, inputs: Inputs, generation: Generation) -> list[TokenTrace | None]:
    """The trace of each caption, None where it is empty."""
    if all(len(tokens) for tokens in generation.tokens):
        return list(token_vhd(model, inputs, generation.tokens))
    padded = [tokens if len(tokens) else inputs.input_ids[row, -1:] for row, tokens in enumerate(generation.tokens)]
    traces = token_vhd(model, inputs, padded)
    return [trace if len(tokens) else None for trace, tokens in zip(traces, generation.tokens, strict=True)]


def _caption_batch(
    model: LVLM, name: str, method: Method, samples: list[Sample], config: StudyConfig, parser: ObjectParser
) -> Iterator[_Captioned]:
    """Caption a batch with one method and, for the baseline, look inside."""
    inputs = model.inputs([s.image for s in samples], config.prompt)
    generation, chosen, seconds = _generate(model, method, inputs, config.max_new_tokens)
    traces = _traces(model, inputs, generation) if name == BASELINE else [None] * len(samples)
    for row, sample in enumerate(samples):
        text = generation.texts[row]
        heads = chosen.heads[row].nonzero().tolist() if chosen else None
        score = score_caption(text, sample.truth, parser)
        yield _Captioned(sample, name, text, generation.tokens[row].tolist(), seconds, score, traces[row], heads)


def run_study(config: StudyConfig) -> Summary:
    """Run a study, or go on with one that was interrupted; results lie in `config.out` as they come."""
    parser = ObjectParser.coco()
    data = open_data(config.data, config.split, parser).limited(config.limit, config.seed)
    model = load(config.model, dtype=config.dtype, device=config.device)
    top_k = default_top_k(model.n_heads) if config.top_k is None else config.top_k
    manifest = manifest_of(config, model, data, top_k)
    slug = f"{Path(config.model).name}-{config.data}".replace(":", "-").replace("/", "-")
    out = Path(config.out) if config.out else Path("runs") / f"{slug}-{manifest.digest}"
    manifest.claim(out)
    records = Records(out / "captions.jsonl")
    done = {(row["image_id"], row["method"]) for row in records.rows}
    methods = config.parsed_methods
    with tqdm(total=len(methods) * len(data.image_ids), initial=len(done), unit="caption") as bar:
        for name, method in methods.items():
            bar.set_description(name)
            for start in range(0, len(data.image_ids), config.batch_size):
                ids = data.image_ids[start : start + config.batch_size]
                missing = {i for i in ids if (i, name) not in done}
                if not missing:
                    continue
                samples = [data.load(i) for i in ids]  # the whole batch, so that a resumed run computes the same
                batch = _caption_batch(model, name, method, samples, config, parser)
                new = [
                    _record(c, token_ends(model.tokenizer.decode, c.tokens), top_k)
                    for c in batch
                    if c.sample.image_id in missing
                ]
                records.append(new)
                bar.update(len(new))
    return write_report(records.rows, list(methods), out, top_k=top_k, seed=config.seed)
