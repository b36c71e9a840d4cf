"""The study: captions with each method, their hallucinations, T-VHD of the words, one table and three figures."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from interp.data import Sample
from interp.evaluate.alignment import sentences, token_ends, tokens_of
from interp.evaluate.chair import score_caption
from interp.evaluate.objects import ObjectParser
from interp.experiments.compared import BASELINE, ComparisonConfig, check_methods, described, least_rows
from interp.experiments.config import at_least
from interp.experiments.engine import Job, Run
from interp.experiments.operating import Knob, methods_of
from interp.experiments.records import CaptionRecord, MentionRecord
from interp.experiments.report import Summary, summarised, write_report
from interp.experiments.setup import Setup
from interp.interventions import Greedy, Method
from interp.metrics.vhd import default_top_k, token_divergence
from interp.models import LVLM, Generation, Inputs
from interp.trace.divergence import TokenTrace, token_vhd


@dataclass(frozen=True)
class StudyConfig(ComparisonConfig):
    """Settings of `interp study`; every field is an option of the command."""

    max_new_tokens: int = 128
    """Length cap of a caption, in tokens."""
    top_k: int | None = None
    """Heads of a layer that T-VHD sums over; None for an eighth of them."""
    operating_curve: Knob | None = None
    """Caption with greedy biased on stopping, or on naming, too, and tell how far above that curve methods are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, max_new_tokens=self.max_new_tokens, top_k=self.top_k)


def mention_records(text: str, ends: Sequence[int], truth: frozenset[str], parser: ObjectParser) -> list[MentionRecord]:
    """The object mentions of a caption, with the tokens that wrote them."""
    score = score_caption(text, truth, parser)
    found = []
    for mention, wrong in zip(score.mentions, score.hallucinated, strict=True):
        span = tokens_of(ends, mention.start, mention.end)
        words = text[mention.start : mention.end]
        assert span, f"no token wrote {words!r}"
        found.append(MentionRecord(mention.category, words, wrong, mention.start, mention.end, span.start, len(span)))
    return found


def _looked_into(trace: TokenTrace, text: str, ends: Sequence[int], top_k: int) -> dict[str, Any]:
    """What a trace adds to a record: T-VHD and probability by token, the first VHD map, the sentences' tokens."""
    spans = [tokens_of(ends, start, end) for start, end in sentences(text)]
    return {
        "t_vhd": [round(v, 4) for v in token_divergence(trace.vhd, top_k).tolist()],
        "probability": [round(v, 6) for v in trace.probability.tolist()],
        "vhd": [[round(v, 4) for v in row] for row in trace.vhd[0].tolist()],
        "sentences": tuple((span.start, span.stop) for span in spans if span),
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
) -> list[CaptionRecord]:
    """Caption a batch with one method (greedy if None) and, for greedy, look inside: one record an image."""
    config = StudyConfig() if config is None else config
    top_k = default_top_k(model.n_heads) if config.top_k is None else config.top_k
    inputs = model.inputs([s.image for s in samples], config.data.prompt)
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
        records.append(
            CaptionRecord(
                image_id=sample.image_id,
                method=name,
                caption=text,
                mentions=tuple(mention_records(text, ends, sample.truth, parser)),
                truth=tuple(sorted(sample.truth)),
                n_tokens=len(tokens),
                seconds=round(seconds, 4),
                kv_bytes=generation.cache_bytes // len(samples),
                tokens=tokens,
                ends=ends,
                heads=steered.heads[-1].heads[row].nonzero().tolist() if steered.heads else None,
                **({} if trace is None else _looked_into(trace, text, ends, top_k)),
            )
        )
    return records


def _warm_up(model: LVLM, method: Method, samples: Sequence[Sample], prompt: str) -> None:
    """Two tokens nobody times: whatever is set up at first use does not count against the first batch."""
    with method(model):
        model.generate(model.inputs([s.image for s in samples], prompt), max_new_tokens=2)


def caption_job(setup: Setup, config: StudyConfig, methods: Mapping[str, Method]) -> Job[CaptionRecord]:
    """A caption of every image with every method, each warmed up with two images: one may need a second."""
    warm: set[str] = set()

    def work(name: str, samples: Sequence[Sample]) -> list[CaptionRecord]:
        if name not in warm:
            _warm_up(setup.model, methods[name], samples[:2], config.data.prompt)
            warm.add(name)
        return caption_records(setup.model, samples, setup.parser, config, name, methods[name])

    ids, least = setup.data.image_ids, least_rows(methods)
    return Job("captions", CaptionRecord, ids, list(methods), setup.data.load, work, "caption", least)


def run_study(config: StudyConfig) -> Summary | None:
    """Run a study, or go on with one that was interrupted; results lie in `config.run.out` as they come.

    Under a launcher of several processes the first one returns the summary, the others None when all is written.
    """
    return study(Setup.of(config), config, config.compared)


def study(setup: Setup, config: StudyConfig, methods: Mapping[str, Method]) -> Summary | None:
    """A study of a setup's images with methods by name, of which the first is the baseline."""
    setup.require_truth()
    model = setup.model
    if not setup.data.has_truth:
        raise ValueError(
            f"{setup.data.name} does not say what is in its pictures, so captions cannot be scored; name a column of "
            "objects (?truth=COLUMN) or of reference captions (?captions=COLUMN)"
        )
    top_k = default_top_k(model.n_heads) if config.top_k is None else config.top_k
    if top_k > model.n_heads:
        raise ValueError(f"top_k is at most the {model.n_heads} heads of a layer of this model, got {top_k}")
    knob = config.operating_curve
    captioned = {**methods, **({} if knob is None else methods_of(knob, model, setup.parser.categories))}
    check_methods(model, captioned)
    manifest = setup.manifest(
        "study",
        config,
        methods=described(captioned),
        decoding="greedy",
        prompt=config.data.prompt,
        max_new_tokens=config.max_new_tokens,
        top_k=top_k,
    )
    out = setup.folder("", config, manifest)
    job = caption_job(setup, config, captioned)
    job.check(config.run.batch_size)
    with Run.opened(out, manifest, setup.shard) as run:
        records = run.made(job, config.run)
        if records is None:
            return None
        options: Any = {"top_k": top_k, "seed": config.data.seed, "failures": run.failures, "knob": knob}
        summary = summarised(records, list(methods), out, **options)
        write_report(summary, records)
        return summary
