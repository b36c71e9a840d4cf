"""Attention sinks on text: inputs that tell explanations apart, and what tokens look like inside.

Gu et al., "When Attention Sink Emerges in Language Models: An Empirical View", arXiv 2410.10781: `Sink_k^eps`
(section 3), and what a sink looks like inside (a large hidden state, a small value, a key that queries point at).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.models import LVLM, AttentionCall, Inputs, run_with_edits

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
