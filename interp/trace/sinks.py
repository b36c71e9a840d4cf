"""Attention sinks on text: how often the first token is one, for inputs that tell explanations apart, and its inside.

Gu et al., "When Attention Sink Emerges in Language Models: An Empirical View", arXiv 2410.10781: `Sink_k^eps`
(section 3), and what a sink looks like inside (a large hidden state, a small value, a key that queries point at).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp import plots
from interp.models import LVLM, AttentionCall, Inputs, run_with_edits
from interp.trace.attention import attention_statistics

TEXTS = ("natural", "random", "repeated", "chat")
NATURAL = Path(__file__).parent / "natural.txt"


@dataclass(frozen=True)
class Inside:
    """What tokens look like inside.

    `cosine` is the mean cosine of a token's key with the queries that see it, `massive` the largest absolute activation
    of its hidden state, with its dimension.  Key-value heads are repeated for each of their query heads.
    """

    hidden_norm: Float[Tensor, "batch layer token"]
    key_norm: Float[Tensor, "batch layer head token"]
    value_norm: Float[Tensor, "batch layer head token"]
    cosine: Float[Tensor, "batch layer head token"]
    massive: Float[Tensor, "batch layer token"]
    massive_dimension: Int[Tensor, "batch layer token"]


def inside(model: LVLM, inputs: Inputs) -> Inside:
    """What tokens look like inside, in one traced pass; hidden states are those that go into each layer."""
    found: dict[str, list[Tensor]] = {name: [] for name in Inside.__dataclass_fields__}
    real = inputs.attention_mask

    def stream(_: int, x: Tensor) -> None:
        largest, dimension = x.float().abs().max(-1)
        found["hidden_norm"].append(x.float().norm(dim=-1).cpu())
        found["massive"].append(largest.cpu())
        found["massive_dimension"].append(dimension.cpu())

    def kernel(_: int, call: AttentionCall) -> None:
        groups = call.query.shape[1] // call.key.shape[1]
        key, value = (x.float().repeat_interleave(groups, 1) for x in (call.key, call.value))
        asks = real.to(call.query.device)[:, None, :, None]
        query = torch.nn.functional.normalize(call.query.float(), dim=-1) * asks
        later = query.flip(2).cumsum(2).flip(2)  # of all queries from a token on, so no map is needed
        number = asks.flip(2).cumsum(2).flip(2).clamp(min=1)[..., 0]
        cosine = (later * torch.nn.functional.normalize(key, dim=-1)).sum(-1) / number
        for name, x in (("key_norm", key.norm(dim=-1)), ("value_norm", value.norm(dim=-1)), ("cosine", cosine)):
            found[name].append(x.cpu())

    run_with_edits(model, inputs, {"resid_pre": stream, "attention": kernel})
    return Inside(**{name: torch.stack(values, 1) for name, values in found.items()})


def sequences(model: LVLM, kind: str, n: int, length: int, seed: int = 0, text: str | None = None) -> Inputs:
    """`n` sequences of `length` tokens: `natural` text, `random` tokens, one token `repeated`, or a `chat` turn.

    Natural, random and chat sequences begin with the tokenizer's beginning-of-sequence token where it has one.
    """
    if kind not in TEXTS:
        raise ValueError(f"inputs are of the kinds {', '.join(TEXTS)}, got {kind!r}")
    random = np.random.default_rng(seed)
    tokenizer = model.tokenizer
    special = set(tokenizer.all_special_ids)
    ordinary = np.array([i for i in range(len(tokenizer)) if i not in special])
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    if kind == "repeated":
        return model.tokens(torch.from_numpy(random.choice(ordinary, size=(n, 1)).repeat(length, 1)))
    if kind == "random":
        drawn = random.choice(ordinary, size=(n, length))
        drawn[:, : len(begin)] = begin
        return model.tokens(torch.from_numpy(drawn))
    words = NATURAL.read_text(encoding="utf-8") if text is None else text
    ids = tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < length:
        raise ValueError(f"the text has {len(ids)} tokens; a sequence needs {length}")
    starts = random.integers(0, len(ids) - length + 1, n)
    rows = [ids[start : start + length] for start in starts]
    if kind == "chat":
        asked = [model.prompt(tokenizer.decode(row), 0) for row in rows]
        chat = [tokenizer(turn, add_special_tokens=False)["input_ids"] for turn in asked]
        rows = [row if row[:1] == begin else begin + row for row in chat]
        return model.tokens(torch.tensor([row[:length] for row in rows]))
    return model.tokens(torch.tensor([(begin + row)[:length] for row in rows]))


@dataclass(frozen=True)
class SinksConfig:
    """Settings of `interp sinks`; every field but the model's is an option of the command."""

    model: str = "testbed"
    inputs: str = "natural,random,repeated,chat"
    """Comma-separated kinds of input: natural, random, repeated, chat."""
    length: int = 64
    """Tokens of a sequence (T)."""
    eps: float = 0.3
    """A token that receives more than this is a sink."""
    n: int = 32
    """Sequences of each kind."""
    seed: int = 0
    """Seed of the tokens drawn."""
    text: str | None = None
    """File with natural text; a few paragraphs that come with interp if None."""
    out: str | None = None
    """Folder for sinks.json and the figures."""

    def __post_init__(self) -> None:
        if self.length < 2 or self.n < 1:
            raise ValueError(f"expected a length of at least 2 and n of at least 1, got {self.length} and {self.n}")
        if not 0 < self.eps < 1:
            raise ValueError(f"eps lies between 0 and 1, got {self.eps}")
        wrong = [k for k in self.kinds if k not in TEXTS]
        if wrong or not self.kinds:
            raise ValueError(f"inputs are of the kinds {', '.join(TEXTS)}, got {self.inputs!r}")

    @property
    def kinds(self) -> list[str]:
        """The kinds of input asked for."""
        return [k.strip() for k in self.inputs.split(",")]


@dataclass(frozen=True)
class SinkRow:
    """One kind of input: `Sink_1^eps` in percent, what the first token receives, and it against the other tokens.

    `hidden`, `key` and `value` are its norms over the median of the others (mean over layers, the largest layer's for
    `hidden`); the cosines are with the queries that see a key.
    """

    kind: str
    sink_1: float
    received: float
    hidden: float
    key: float
    value: float
    cosine: float
    cosine_others: float


@dataclass(frozen=True)
class SinksReport:
    """The table of `interp sinks`, and by kind the share of sequences in which a head has its sink on the first."""

    config: SinksConfig
    rows: tuple[SinkRow, ...]
    heads: dict[str, Float[np.ndarray, "layer head"]]

    def __str__(self) -> str:
        c = self.config
        lines = [
            f"{c.model}: {c.n} sequences of {c.length} tokens; a sink receives more than {c.eps}",
            "                             first token / median of the others    cosine of queries with its key",
            "inputs    Sink_1   received  hidden (largest)    key    value     first    others",
        ]
        for r in self.rows:
            norms = f"{r.hidden:>12.1f}{r.key:>13.2f}{r.value:>9.2f}"
            lines.append(
                f"{r.kind:<9}{r.sink_1:>6.1f} %{r.received:>10.3f}{norms}{r.cosine:>10.2f}{r.cosine_others:>10.2f}"
            )
        return "\n".join(lines)

    def write(self, out: Path) -> None:
        """Save `sinks.json` and a heat map for each kind, with its data beside it."""
        out.mkdir(parents=True, exist_ok=True)
        summary = {"settings": vars(self.config), "rows": [vars(row) for row in self.rows]}
        (out / "sinks.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        for kind, share in self.heads.items():
            np.savez(out / f"sink_{kind}.npz", allow_pickle=False, first_is_sink_percent=share)
        plots.draw_sinks(out)


def measure_sinks(model: LVLM, config: SinksConfig) -> SinksReport:
    """`Sink_1^eps` and the inside of the first token for each kind of input."""
    text = None if config.text is None else Path(config.text).read_text(encoding="utf-8")
    rows, heads = [], {}
    for kind in config.kinds:
        inputs = sequences(model, kind, config.n, config.length, config.seed, text)
        stats = attention_statistics(model, inputs, with_sparsity=False)
        look = inside(model, inputs)
        is_sink = stats.sinks(config.eps)[..., 0].float()
        heads[kind] = 100 * is_sink.mean(0).numpy()

        def ratio(x: Tensor) -> Tensor:
            return x[..., 0] / x[..., 1:].median(-1).values.clamp(min=1e-9)

        rows.append(
            SinkRow(
                kind,
                100 * is_sink.mean().item(),
                stats.received[..., 0].mean().item(),
                ratio(look.hidden_norm).mean(0).max().item(),
                ratio(look.key_norm).mean().item(),
                ratio(look.value_norm).mean().item(),
                look.cosine[..., 0].mean().item(),
                look.cosine[..., 1:].mean().item(),
            )
        )
    return SinksReport(config, tuple(rows), heads)
