"""`interp causal`: what every head does for hallucinated and for correct words, over a data set, and how heads rank.

For each object word of the model's own captions: the contribution of each head to its log-probability, exactly and by
attribution patching, with the image and without it; what the head writes by itself (direct logit attribution); whether
the text alone goes on to name it.  Beside them VHD, attention to the image, mean head outputs, and the cosines of
Proposition 1.  `heads.npz` holds every map, to choose heads by.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interp.attribution.effects import attributed_contributions, exact_contributions
from interp.attribution.lens import FirstTokens, first_tokens, head_logits
from interp.attribution.probe import Cut, goes_on_to_name
from interp.attribution.proposition1 import alignment
from interp.data import Sample, open_data
from interp.evaluate.alignment import token_ends, tokens_of
from interp.evaluate.chair import score_caption
from interp.evaluate.objects import ObjectParser
from interp.experiments.attribution_report import CausalReport, write_report
from interp.experiments.engine import Run, Shard, in_order
from interp.experiments.records import Manifest, device_name
from interp.metrics.attention import KINDS
from interp.models import LVLM, Inputs, load, read
from interp.trace.attention import attention_statistics
from interp.trace.divergence import vhd


@dataclass(frozen=True)
class CausalConfig:
    """Settings of `interp causal`; every field is an option of the command."""

    model: str = "testbed"
    """A bundled model (testbed, testbed-sink), a folder, or a hub id."""
    data: str = "testbed:broken"
    """testbed:broken, testbed:biased, testbed:unbiased, or coco:FOLDER."""
    split: str | None = None
    """Which split; heads that are to be edited in a study should be ranked on another split than the study's."""
    limit: int | None = 50
    """How many images, drawn by seed from the sorted ids; None for all."""
    seed: int = 0
    """Seed of the sample of images."""
    prompt: str = "Please describe this image in detail."
    """What the model is asked."""
    max_new_tokens: int = 128
    """Length cap of a caption, in tokens."""
    exact: bool = True
    """Whether to silence every head in turn; without it contributions are those of attribution patching."""
    batch_size: int = 10
    """Images at once."""
    device: str = "cpu"
    """Where the model runs."""
    dtype: str = "float32"
    """Type of the weights."""
    out: str | None = None
    """Folder of the results; a name made of the settings under runs/ if None."""

    def __post_init__(self) -> None:
        for name in ("limit", "max_new_tokens", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is a number of at least 1, got {value}")


@dataclass(frozen=True)
class _Words:
    """The object words of a caption: what each names, whether it is wrong, and its first token."""

    tokens: list[int]
    categories: list[str]
    wrong: list[bool]


def _words(model: LVLM, sample: Sample, ids: torch.Tensor, text: str, parser: ObjectParser) -> _Words:
    ends = token_ends(lambda t: model.tokenizer.decode(t, skip_special_tokens=True), ids.tolist())
    score = score_caption(text, sample.truth, parser)
    starts = [tokens_of(ends, m.start, m.end).start for m in score.mentions]
    return _Words(starts, [m.category for m in score.mentions], list(score.hallucinated))


def _rounded(values: torch.Tensor) -> list[Any]:
    return np.round(values.double().cpu().numpy(), 5).tolist()


@dataclass(frozen=True)
class _Direct:
    """What each head writes of the token that began a word, `[layer, head]`, and how that compares with the others.

    `over_others` is its logit less the mean over the other objects' first tokens, `most` whether it is the largest.
    """

    over_others: torch.Tensor
    most: torch.Tensor


def _direct(
    model: LVLM, whole: Inputs, words: Sequence[_Words], n_prompt: int, names: FirstTokens
) -> list[list[_Direct]]:
    """Direct logits of the token that was written, before each object word, against the objects' names."""
    longest = max(len(w.tokens) for w in words)
    places = torch.tensor([[n_prompt - 1 + t for t in w.tokens] + [0] * (longest - len(w.tokens)) for w in words])
    places = places.to(whole.input_ids.device)
    own = whole.input_ids.gather(1, places + 1)[..., None]
    rivals = names.ids.unique().to(own.device)
    found = head_logits(model, whole, places, torch.cat([own, rivals.expand(*own.shape[:-1], -1)], -1)).transpose(1, 2)
    others = rivals != own  # [row, word, name]
    direct = []
    for row, w in enumerate(words):
        logits = [(found[row, i, ..., 0], found[row, i, ..., 1:][..., others[row, i]]) for i in range(len(w.tokens))]
        direct.append([_Direct(mine - rest.mean(-1), mine > rest.amax(-1)) for mine, rest in logits])
    return direct


def _records(
    model: LVLM, samples: Sequence[Sample], parser: ObjectParser, config: CausalConfig
) -> list[dict[str, Any]]:
    """One record an image: its maps, and for each object word what the heads do for it."""
    inputs = model.inputs([s.image for s in samples], config.prompt)
    generation = model.generate(inputs, max_new_tokens=config.max_new_tokens)
    captions = [ids if len(ids) else inputs.input_ids[row, -1:] for row, ids in enumerate(generation.tokens)]
    pairs = zip(samples, generation.tokens, generation.texts, strict=True)
    words = [_words(model, sample, ids, text, parser) for sample, ids, text in pairs]
    whole, n_prompt = inputs.extended(captions), inputs.input_ids.shape[1]
    exact = exact_contributions(model, inputs, captions) if config.exact else None
    patched = attributed_contributions(model, inputs, captions, [w.tokens for w in words])
    names = first_tokens(model, parser.categories)
    direct = _direct(model, whole, words, n_prompt, names) if any(w.tokens for w in words) else []
    cuts = [
        Cut(sample.image, ids[:token], category)
        for sample, ids, w in zip(samples, generation.tokens, words, strict=True)
        for token, category in zip(w.tokens, w.categories, strict=True)
    ]
    blind = iter(goes_on_to_name(model, cuts, config.prompt, parser, batch_size=2 * config.batch_size))
    divergence = vhd(model, inputs)
    cosine = alignment(model, inputs)
    longest = max(len(c) for c in captions)
    stats = attention_statistics(model, whole, longest, with_sparsity=False)
    steps = torch.arange(n_prompt - 1, n_prompt - 1 + longest).expand(len(samples), -1)
    z = read(model, whole, "z", positions=steps)["z"]
    records = []
    for row, (sample, w) in enumerate(zip(samples, words, strict=True)):
        asks = stats.kinds[row] == KINDS.index("generated")
        record: dict[str, Any] = {
            "image_id": sample.image_id,
            "caption": generation.texts[row],
            "vhd": _rounded(divergence[row]),
            "image_mass": _rounded(stats.image_mass[row][..., asks].mean(-1)),
            "cosine": _rounded(cosine[:, row]),
            "mean": _rounded(z[row, :, : len(captions[row])].mean(1)),
            "words": [],
        }
        for i, (token, category, wrong) in enumerate(zip(w.tokens, w.categories, w.wrong, strict=True)):
            word = {"object": category, "hallucinated": wrong, "token": token, "blind": next(blind)}
            began = int(captions[row][token])
            word["begins_as"] = [n for n, i in zip(names.words, names.ids.tolist(), strict=True) if i == began]
            word["patched"] = _rounded(patched[row][i])
            if exact is not None:
                word["exact"] = _rounded(exact[row, :, token])
            word["direct"] = _rounded(direct[row][i].over_others)
            word["writes_it"] = direct[row][i].most.int().tolist()
            record["words"].append(word)
        records.append(record)
    return records


def run_causal(config: CausalConfig) -> CausalReport:
    """Measure, or go on with a run that was interrupted; see the module.

    Under a launcher of several processes the others than the first stop when all is written (SystemExit 0).
    """
    report = _run(config)
    if report is None:
        sys.exit(0)
    return report


def _run(config: CausalConfig) -> CausalReport | None:
    parser, shard = ObjectParser.coco(), Shard.current(config.device)
    data = open_data(config.data, config.split, parser).limited(config.limit, config.seed)
    model = load(config.model, dtype=config.dtype, device=shard.device(config.device))
    settings = {k: v for k, v in vars(config).items() if k not in ("out", "device", "limit")}
    manifest = Manifest.of(
        **settings, weights=model.fingerprint, image_ids=list(data.image_ids), device=device_name(model.device)
    )
    slug = f"causal-{Path(config.model).name}-{config.data}".replace(":", "-").replace("/", "-")
    out = Path(config.out) if config.out else Path("runs") / f"{slug}-{manifest.digest}"

    def work(name: str, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        return [{"method": name} | row for row in _records(model, samples, parser, config)]

    with Run.opened(out, manifest, shard, "words", "image_id") as run:
        run.work_through(data.image_ids, ["greedy"], data.load, work, batch_size=config.batch_size, unit="image")
        rows = run.joined(in_order(data.image_ids, ["greedy"]))
        return None if rows is None else write_report(rows, out, seed=config.seed)
