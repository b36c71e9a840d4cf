"""`interp sinks`: where attention sinks are in a text model, by kind of input, length and what stands first.

Gu et al., "When Attention Sink Emerges in Language Models: An Empirical View", arXiv 2410.10781: `Sink_k^eps`
(section 3), and what a sink looks like inside (a large hidden state, a small value, a key that queries point at).
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from interp.english import reference_manual
from interp.experiments.attention import SinkToken, token_sums, top_tokens
from interp.experiments.config import ExperimentConfig, ModelConfig, at_least
from interp.metrics.attention import FRACTIONS, RECALLS, sparsity
from interp.models import LVLM, AttentionCall, Inputs
from interp.trace.attention import attention_statistics
from interp.trace.sinks import FIRST, TEXTS, Looking, sequences

EPS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Limits at which `Sink_1` is told beside the chosen one."""
PLACES = 8
"""Places from the first on whose `Sink_k` is told."""
TAIL = 32
"""Last queries of a sequence, whose sparsity is measured: they see about as many keys as it has tokens."""
AT_ONCE = 2048
"""Tokens in a batch."""


@dataclass(frozen=True)
class SinksConfig:
    """Settings of `interp sinks`; vision-language models run without a picture."""

    model: ModelConfig = ExperimentConfig.model
    inputs: str = "natural,random,repeated,chat"
    """Comma-separated kinds of input: natural, random, repeated, chat, own (the model's samples)."""
    length: str = "64"
    """Tokens of a sequence (T); several with commas, and with x their number: 64,1024x8."""
    eps: float = 0.3
    """A token that receives more than this is a sink."""
    n: int = 32
    """Sequences of each kind and length, where length does not say."""
    seed: int = 0
    """Seed of the tokens drawn."""
    text: str | None = None
    """File with natural text, or python for Python's reference manual; a few paragraphs if None."""
    first: Literal["kept", "none", "masked", "replaced"] = "kept"
    """The first token: kept, none (no beginning-of-sequence token), masked (unseen) or replaced by a word."""
    against_random: bool = False
    """Measure the same configuration with random weights as well, and draw both maps."""
    checkpoints: str | None = None
    """Comma-separated models in place of --model: folders, ID@REVISION, or a folder of a training's checkpoints."""
    out: str | None = None
    """Folder for sinks.json and the figures."""

    def __post_init__(self) -> None:
        at_least(1, n=self.n)
        at_least(0, seed=self.seed)
        at_least(2, **{f"length {length}": length for length, _ in self.lengths})
        at_least(1, **{f"n of length {length}": n for length, n in self.lengths})
        if not 0 < self.eps < 1:
            raise ValueError(f"eps lies between 0 and 1, got {self.eps}")
        wrong = [k for k in self.kinds if k not in TEXTS]
        if wrong or not self.kinds:
            raise ValueError(f"inputs are of the kinds {', '.join(TEXTS)}, got {self.inputs!r}")
        if self.first not in FIRST:
            raise ValueError(f"first is one of {', '.join(FIRST)}, got {self.first!r}")
        if self.first != "kept" and "repeated" in self.kinds:
            raise ValueError(
                f"one token repeated has no first among equals: leave repeated out with first={self.first}"
            )
        if self.checkpoints is not None and (self.out is None or self.against_random):
            raise ValueError("checkpoints need --out, where they go on, and are not set against random weights")

    @property
    def kinds(self) -> list[str]:
        """The kinds of input asked for."""
        return [k.strip() for k in self.inputs.split(",")]

    @property
    def lengths(self) -> list[tuple[int, int]]:
        """Each length, with how many sequences of it."""
        found = []
        for part in self.length.split(","):
            length, x, n = part.strip().partition("x")
            if not length.isdigit() or (x and not n.isdigit()):
                raise ValueError(f"a length is a number, or with its sequences 1024x8, got {part.strip()!r}")
            found.append((int(length), int(n) if x else self.n))
        if len({length for length, _ in found}) < len(found):
            raise ValueError(f"each length is told once, got {self.length!r}")
        return found


@dataclass(frozen=True)
class Estimate:
    """A mean over sequences with its standard error (`nan` for one sequence)."""

    mean: float
    error: float

    @classmethod
    def of(cls, values: Tensor) -> "Estimate":
        """From a value for each sequence; those that are `nan` do not count."""
        known = values.double()[~values.isnan()]
        error = known.std().item() / len(known) ** 0.5 if len(known) > 1 else float("nan")
        return cls(known.mean().item() if len(known) else float("nan"), error)


@dataclass(frozen=True)
class SinkRow:
    """One kind of input at one length.

    `sink_1` is `Sink_1^eps` in percent, `any_token` the same for the best token of each head and sequence, `places`
    `Sink_k` for the first places, `by_eps` `Sink_1` at the limits of `EPS`, `received` what the first token receives;
    `loss` is in nats a token.  `hidden`, `key` and `value` are the first token's norms over the median of the others
    (mean over layers, the largest layer's for `hidden`); the cosines are with the queries that see a key.  `massive` is
    its largest activation and the layer and dimension it lies in.  `share` is the smallest share of the keys that holds
    98 % of the attention of the last queries, in percent, `share_rest` without the first token, `top` what the top 1 %
    hold, likewise.
    """

    kind: str
    length: int
    n: int
    sink_1: Estimate
    any_token: Estimate
    places: tuple[float, ...]
    by_eps: dict[str, float]
    received: float
    loss: Estimate
    hidden: float
    key: float
    value: float
    cosine: float
    cosine_others: float
    massive: float
    massive_at: tuple[int, int]
    share: Estimate
    share_rest: Estimate
    top: Estimate
    top_rest: Estimate
    tokens: tuple[SinkToken, ...] = ()


@dataclass(frozen=True)
class Measured:
    """A row, with what is drawn of it: the map of heads, and means by layer (by name, `[layer]`)."""

    row: SinkRow
    heads: Float[np.ndarray, "layer head"]
    layers: dict[str, Float[np.ndarray, " layer"]] = field(default_factory=dict)


def ratio(x: Float[Tensor, "*other token"]) -> Float[Tensor, "*other"]:
    """The first token's over the median of the others."""
    return x[..., 0] / x[..., 1:].median(-1).values.clamp(min=1e-9)


class _Tail:
    """Sparsity of the last queries of each sequence, layer by layer."""

    def __init__(self, inputs: Inputs) -> None:
        self.real = inputs.attention_mask.bool()
        self.found: list[Tensor] = []

    def watch(self, _: int, call: AttentionCall) -> None:
        n = call.query.shape[2]
        part = call.block(max(0, n - TAIL), n)
        real = self.real.to(call.query.device)
        visible = part.visible[:, 0].expand(len(real), -1, -1) & real[:, None]
        kinds = torch.zeros_like(real, dtype=torch.long)
        found = sparsity(part.pattern().float(), visible.sum(-1).clamp(min=1), real.int().argmax(-1), kinds)
        at, top = RECALLS.index(0.98), FRACTIONS.index(0.01)
        each = (found.share[..., at], found.share_rest[..., at], found.recall[..., top], found.recall_rest[..., top])
        self.found.append(torch.stack([x.nanmean((1, 2)) for x in each], -1).cpu())

    @property
    def means(self) -> Float[Tensor, "batch 4"]:
        """Over layers, heads and queries: share, without the first, top, without the first."""
        return torch.stack(self.found, 1).nanmean(1)


def losses(logits: Float[Tensor, "batch token vocabulary"], inputs: Inputs) -> Float[Tensor, " batch"]:
    """Nats a token, of the tokens whose predecessors are seen."""
    target, real = inputs.input_ids[:, 1:], inputs.attention_mask[:, :-1].float()
    each = F.cross_entropy(logits[:, :-1].transpose(1, 2).float(), target, reduction="none")
    return ((each * real).sum(1) / real.sum(1)).cpu()


def _batch(model: LVLM, inputs: Inputs, eps: float) -> tuple[dict[str, Tensor], list[Any]]:
    """What is known of each sequence of a batch, in one pass, and its tokens."""
    looking, tail, lost = Looking(inputs), _Tail(inputs), []
    logits = ("logits", lambda _, x: lost.append(losses(x, inputs)))
    beside = [*looking.edits.items(), ("attention", tail.watch), logits]
    stats = attention_statistics(model, inputs, with_sparsity=False, beside=beside, keep=None)
    look, sinks = looking.inside, stats.sinks(eps).float()
    others = look.cosine[..., 1:]
    found = {
        "first": sinks[..., 0],
        "any": sinks.amax(-1),
        "places": sinks[..., :PLACES].mean((1, 2)),
        "eps": torch.stack([stats.sinks(e)[..., 0].float().mean((1, 2)) for e in EPS], -1),
        "received": stats.received[..., 0].mean((1, 2)),
        "loss": lost[0],
        "hidden": ratio(look.hidden_norm),
        "key": ratio(look.key_norm).mean(-1),
        "value": ratio(look.value_norm).mean(-1),
        "cosine": look.cosine[..., 0].mean(-1),
        "cosine_others": others.mean((-1, -2)),
        "massive": look.massive[..., 0],
        "massive_dimension": look.massive_dimension[..., 0],
        "massive_others": look.massive[..., 1:].median(-1).values,
        "tail": tail.means,
    }
    tokens = [t for row in range(len(sinks)) for t in token_sums(model, inputs, stats, row, eps)]
    return found, tokens


def measure(model: LVLM, inputs: Inputs, kind: str, eps: float = 0.3) -> Measured:
    """Sinks, norms, loss and sparsity on sequences of one kind, a batch of some 2,000 tokens at a time."""
    n, length = inputs.input_ids.shape
    size = max(1, AT_ONCE // length)
    parts, tokens = [], []
    for start in range(0, n, size):
        rows = slice(start, start + size)
        names = ("input_ids", "attention_mask", "image_mask", "frame_mask")
        cut: dict[str, Any] = {name: getattr(inputs, name)[rows] for name in names}
        some = replace(inputs, **cut, position_ids=inputs.position_ids[..., rows, :])
        found, named = _batch(model, some, eps)
        parts.append(found)
        tokens += named
    all_ = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    layer = int(all_["massive"].mean(0).argmax())
    row = SinkRow(
        kind=kind,
        length=length,
        n=n,
        sink_1=Estimate.of(100 * all_["first"].mean((1, 2))),
        any_token=Estimate.of(100 * all_["any"].mean((1, 2))),
        places=tuple((100 * all_["places"].mean(0)).tolist()),
        by_eps={f"{e:g}": 100 * v for e, v in zip(EPS, all_["eps"].mean(0).tolist(), strict=True)},
        received=all_["received"].mean().item(),
        loss=Estimate.of(all_["loss"]),
        hidden=all_["hidden"].mean(0).max().item(),
        key=all_["key"].mean().item(),
        value=all_["value"].mean().item(),
        cosine=all_["cosine"].mean().item(),
        cosine_others=all_["cosine_others"].mean().item(),
        massive=all_["massive"].mean(0).max().item(),
        massive_at=(layer, int(all_["massive_dimension"][:, layer].mode().values)),
        **{f: Estimate.of(100 * all_["tail"][:, i]) for i, f in enumerate(("share", "share_rest", "top", "top_rest"))},
        tokens=tuple(top_tokens(tokens, n)),
    )
    names = ("hidden", "key", "value", "cosine", "cosine_others", "massive", "massive_others")
    layers = {name: all_[name].mean(0).numpy() for name in names}
    layers["sink_1"] = 100 * all_["first"].mean((0, 2)).numpy()
    return Measured(row, 100 * all_["first"].mean(0).numpy(), layers)


def text_of(config: SinksConfig) -> str | None:
    """The natural text that is asked for; ValueError if its file cannot be read."""
    if config.text is None or config.text == "python":
        return None if config.text is None else reference_manual()
    try:
        return Path(config.text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read text from {config.text}; expected a file in UTF-8: {error}") from error


def measure_sinks(model: LVLM, config: SinksConfig) -> list[Measured]:
    """Every kind of input at every length."""
    text = text_of(config)
    return [
        measure(model, sequences(model, kind, n, length, config.seed, text, config.first), kind, config.eps)
        for kind in config.kinds
        for length, n in config.lengths
    ]
