"""`interp causal`: what every head does for hallucinated and for correct words, over a data set, and how heads rank.

For each object word of the model's own captions: the contribution of each head to its log-probability, exactly and by
attribution patching, with the image and without it; what the head writes by itself (direct logit attribution); whether
the text alone goes on to name it.  Beside them VHD, attention to the image, mean head outputs, and the cosines of
Proposition 1.  `heads.npz` holds every map, to choose heads by.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from interp.attribution.effects import attributed_contributions, exact_contributions
from interp.attribution.lens import FirstTokens, first_tokens, head_logits
from interp.attribution.probe import Cut, goes_on_to_name
from interp.attribution.proposition1 import alignment
from interp.data import Sample
from interp.evaluate.alignment import token_ends, tokens_of
from interp.evaluate.chair import score_caption
from interp.evaluate.objects import ObjectParser
from interp.experiments.attribution_report import CausalReport, write_report
from interp.experiments.compared import BASELINE
from interp.experiments.config import FIFTY, TENS, DataConfig, ExperimentConfig, RunConfig, at_least
from interp.experiments.engine import Job, Run
from interp.experiments.records import EffectRecord, HeadsRecord
from interp.experiments.setup import Setup
from interp.metrics.attention import KINDS
from interp.models import LVLM, Inputs, read
from interp.trace.attention import attention_statistics
from interp.trace.divergence import vhd


@dataclass(frozen=True)
class CausalConfig(ExperimentConfig):
    """Settings of `interp causal`; heads to be edited in a study are ranked on another split than the study's."""

    data: DataConfig = FIFTY
    run: RunConfig = TENS
    max_new_tokens: int = 128
    """Length cap of a caption, in tokens."""
    exact: bool = True
    """Whether to silence every head in turn; without it contributions are those of attribution patching."""

    def __post_init__(self) -> None:
        at_least(1, max_new_tokens=self.max_new_tokens)


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


def _records(model: LVLM, samples: Sequence[Sample], parser: ObjectParser, config: CausalConfig) -> list[HeadsRecord]:
    """One record an image: its maps, and for each object word what the heads do for it."""
    inputs = model.inputs([s.image for s in samples], config.data.prompt)
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
    blind = iter(goes_on_to_name(model, cuts, config.data.prompt, parser, batch_size=2 * config.run.batch_size))
    divergence = vhd(model, inputs)
    cosine = alignment(model, inputs)
    longest = max(len(c) for c in captions)
    stats = attention_statistics(model, whole, longest, with_sparsity=False)
    steps = torch.arange(n_prompt - 1, n_prompt - 1 + longest).expand(len(samples), -1)
    z = read(model, whole, "z", positions=steps)["z"]
    records = []
    for row, (sample, w) in enumerate(zip(samples, words, strict=True)):
        asks = stats.kinds[row] == KINDS.index("generated")
        effects = []
        for i, (token, category, wrong) in enumerate(zip(w.tokens, w.categories, w.wrong, strict=True)):
            began = int(captions[row][token])
            effects.append(
                EffectRecord(
                    object=category,
                    hallucinated=wrong,
                    token=token,
                    blind=next(blind),
                    begins_as=tuple(n for n, i in zip(names.words, names.ids.tolist(), strict=True) if i == began),
                    patched=_rounded(patched[row][i]),
                    direct=_rounded(direct[row][i].over_others),
                    writes_it=direct[row][i].most.int().tolist(),
                    exact=None if exact is None else _rounded(exact[row, :, token]),
                )
            )
        records.append(
            HeadsRecord(
                image_id=sample.image_id,
                method=BASELINE,
                caption=generation.texts[row],
                vhd=_rounded(divergence[row]),
                image_mass=_rounded(stats.image_mass[row][..., asks].mean(-1)),
                cosine=_rounded(cosine[:, row]),
                mean=_rounded(z[row, :, : len(captions[row])].mean(1)),
                words=tuple(effects),
            )
        )
    return records


def run_causal(config: CausalConfig) -> CausalReport | None:
    """Measure, or go on with a run that was interrupted; see the module.

    Under a launcher of several processes the first one returns the report, the others None when all is written.
    """
    return causal(Setup.of(config), config)


def causal(setup: Setup, config: CausalConfig) -> CausalReport | None:
    """What the heads do on a setup's images."""
    setup.require_truth()

    def work(_: str, samples: Sequence[Sample]) -> list[HeadsRecord]:
        return _records(setup.model, samples, setup.parser, config)

    settings = {"prompt": config.data.prompt, "max_new_tokens": config.max_new_tokens, "exact": config.exact}
    manifest = setup.manifest("causal", config, **settings)
    out = setup.folder("causal-", config, manifest)
    job = Job("words", HeadsRecord, setup.data.image_ids, [BASELINE], setup.data.load, work)
    with Run.opened(out, manifest, setup.shard) as run:
        records = run.made(job, config.run)
        return None if records is None else write_report(records, out, config.data.seed, run.failures)
