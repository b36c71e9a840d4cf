"""The claims about attention sinks: Gu et al., ICLR 2025, arXiv 2410.10781; on which tokens, also VASparse."""

from functools import partial

import numpy as np
import torch

from interp.claims.bench import Bench
from interp.claims.claim import Claim, Measured, above, all_of, below, mean_over, only_if
from interp.evaluate.bootstrap import Interval

CITATION = "Gu et al., ICLR 2025, arXiv 2410.10781"
NONE = Interval(float("nan"), float("nan"), float("nan"))
LOW_MEANING = ("special", "punctuation")


def _sink_1(bench: Bench, kinds: tuple[str, ...]) -> Measured:
    found = {}
    for kind in kinds:
        first = bench.text(kind).sinks[..., 0].float().mean((1, 2)).numpy()
        found[f"Sink_1, {kind} (%)"] = mean_over(100 * first, bench.seed)
    return found


def _which_tokens(bench: Bench) -> Measured:
    shares, firsts = [], []
    for record in bench.attention:
        total = sum(t.sink for t in record.tokens)
        low = sum(t.sink for t in record.tokens if t.kind in LOW_MEANING)
        first = sum(t.sink for t in record.tokens if t.position == 0)
        shares.append(100 * low / total if total else np.nan)
        firsts.append(100 * first / total if total else np.nan)
    any_sink = [100 * float(r.arrays["any_is_sink"].mean()) for r in bench.attention]
    return {
        "sinks on special tokens and punctuation (%)": mean_over(shares, bench.seed),
        "sinks on the first token (%)": mean_over(firsts, bench.seed),
        "heads with a sink (%)": mean_over(any_sink, bench.seed),
    }


def _inside(bench: Bench) -> Measured:
    """In the heads whose first token is a sink in more than half of the texts: its key against the others."""
    text = bench.text("natural")
    heads = text.sinks[..., 0].float().mean(0) > 0.5  # [layer, head]
    found = {"heads with a sink in most texts (%)": mean_over(100 * text.sinks[..., 0].float().mean((1, 2)).numpy())}
    names = ("cosine with its key minus others", "norm of its key by the median", "norm of its value by the median")
    if not heads.any():
        return found | dict.fromkeys(names, NONE)
    cosine, key, value = (getattr(text.inside, n)[:, heads] for n in ("cosine", "key_norm", "value_norm"))
    numbers: list[torch.Tensor] = [
        (cosine[..., 0] - cosine[..., 1:].mean(-1)).mean(1),
        (key[..., 0] / key[..., 1:].median(-1).values).mean(1),
        (value[..., 0] / value[..., 1:].median(-1).values).mean(1),
    ]
    return found | {n: mean_over(x.numpy(), bench.seed) for n, x in zip(names, numbers, strict=True)}


_EXIST = above("Sink_1, natural (%)", 5)
CLAIMS = (
    Claim(
        "sinks-exist",
        CITATION,
        "section 3, table 1",
        "The first token of a text is an attention sink.",
        "share of heads in which it receives more than 0.3 of the attention, 64 tokens of natural text",
        "more than 5 %",
        partial(_sink_1, kinds=("natural",)),
        _EXIST,
        paper="92.5 % (LLaMA2-7B), 18.2 % (their 60M model)",
        pictures=False,
    ),
    Claim(
        "sinks-on-random-text",
        CITATION,
        "section 3, table 1",
        "It is a sink on random tokens as well: the position makes it one.",
        "the same on random tokens",
        "more than 5 %, where natural text has sinks",
        partial(_sink_1, kinds=("natural", "random")),
        only_if(_EXIST, above("Sink_1, random (%)", 5), "there is no sink on natural text either"),
        paper="90.1 % (LLaMA2-7B)",
        pictures=False,
    ),
    Claim(
        "no-sink-on-repeated",
        CITATION,
        "section 3, table 1",
        "One token repeated makes no sink (models without learned positions).",
        "the same on one token repeated 64 times",
        "less than 1 %, where natural text has sinks",
        partial(_sink_1, kinds=("natural", "repeated")),
        only_if(_EXIST, below("Sink_1, repeated (%)", 1), "there is no sink on natural text either"),
        paper="0 % (LLaMA2-7B), 62.3 % (GPT2-XL, learned positions)",
        pictures=False,
    ),
    Claim(
        "sinks-on-low-meaning",
        "Zhuang et al., CVPR 2025, arXiv 2501.06553",
        "section 3, figure 3",
        "Sinks sit on tokens of little meaning, such as the first token and full stops.",
        "of the tokens that are sinks while pictures are captioned, the share of special tokens and punctuation",
        "more than half, where more than 5 % of the heads have a sink",
        _which_tokens,
        only_if(
            above("heads with a sink (%)", 5),
            above("sinks on special tokens and punctuation (%)", 50),
            "hardly any head has a sink",
        ),
    ),
    Claim(
        "sinks-as-key-biases",
        CITATION,
        "section 3, figure 3",
        "Sinks act like key biases: queries point at the sink's key, and its value is small.",
        "in heads with a sink: cosine of queries with its key minus with the others', norms of key and value",
        "the cosine is larger than with the others (above 0) and the value shorter than the median (below 1)",
        _inside,
        all_of(above("cosine with its key minus others", 0), below("norm of its value by the median", 1)),
        pictures=False,
    ),
)
