"""Attention sinks on text: inputs that tell explanations apart, and what tokens look like inside.

Gu et al., "When Attention Sink Emerges in Language Models: An Empirical View", arXiv 2410.10781: `Sink_k^eps`
(section 3), and what a sink looks like inside (a large hidden state, a small value, a key that queries point at).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.models import LVLM, AttentionCall, Inputs, run_with_edits
from interp.models.sites import SiteEdit

TEXTS = ("natural", "random", "repeated", "chat", "own")
NATURAL = Path(__file__).parent / "natural.txt"
First = Literal["kept", "none", "masked", "replaced"]
FIRST: tuple[First, ...] = get_args(First)
"""What is done to the first token: nothing; no beginning-of-sequence token; no query sees it; another token's word."""


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


class Looking:
    """Fills an `Inside` while a pass runs: `edits` are what the pass is to be given."""

    def __init__(self, inputs: Inputs) -> None:
        self.real = inputs.attention_mask
        self.parts: dict[str, list[Tensor]] = {name: [] for name in Inside.__dataclass_fields__}

    def _stream(self, _: int, x: Tensor) -> None:
        largest, dimension = x.float().abs().max(-1)
        self.parts["hidden_norm"].append(x.float().norm(dim=-1).cpu())
        self.parts["massive"].append(largest.cpu())
        self.parts["massive_dimension"].append(dimension.cpu())

    def _kernel(self, _: int, call: AttentionCall) -> None:
        groups = call.query.shape[1] // call.key.shape[1]
        key, value = (x.float().repeat_interleave(groups, 1) for x in (call.key, call.value))
        asks = self.real.to(call.query.device)[:, None, :, None]
        query = torch.nn.functional.normalize(call.query.float(), dim=-1) * asks
        later = query.flip(2).cumsum(2).flip(2)  # of all queries from a token on, so no map is needed
        number = asks.flip(2).cumsum(2).flip(2).clamp(min=1)[..., 0]
        cosine = (later * torch.nn.functional.normalize(key, dim=-1)).sum(-1) / number
        for name, x in (("key_norm", key.norm(dim=-1)), ("value_norm", value.norm(dim=-1)), ("cosine", cosine)):
            self.parts[name].append(x.cpu())

    @property
    def edits(self) -> dict[str, SiteEdit]:
        """The sites that are watched; hidden states are those that go into each layer."""
        return {"resid_pre": self._stream, "attention": self._kernel}

    @property
    def inside(self) -> Inside:
        """What was seen."""
        return Inside(**{name: torch.stack(values, 1) for name, values in self.parts.items()})


def inside(model: LVLM, inputs: Inputs) -> Inside:
    """What tokens look like inside, in one traced pass; hidden states are those that go into each layer."""
    looking = Looking(inputs)
    run_with_edits(model, inputs, looking.edits)
    return looking.inside


def sequences(
    model: LVLM,
    kind: str,
    n: int,
    length: int,
    seed: int = 0,
    text: str | None = None,
    first: First = "kept",
) -> Inputs:
    """`n` sequences of `length` tokens of a kind.

    `natural` text, `random` tokens, one token `repeated`, a `chat` turn, or the model's `own` writing, sampled at
    temperature 1.  All but the repeated ones begin with the tokenizer's beginning-of-sequence token where it has one;
    `first` says what is done to that token.  Natural sequences do not overlap where `text` is given and long enough.
    """
    if kind not in TEXTS:
        raise ValueError(f"inputs are of the kinds {', '.join(TEXTS)}, got {kind!r}")
    if first not in FIRST:
        raise ValueError(f"first is one of {', '.join(FIRST)}, got {first!r}")
    random = np.random.default_rng(seed)
    ordinary = _ordinary(model)
    begin = [] if first == "none" else _begin(model)
    if kind == "repeated":
        ids = torch.from_numpy(random.choice(ordinary, size=(n, 1)).repeat(length, 1))
    elif kind == "random":
        drawn = random.choice(ordinary, size=(n, length))
        drawn[:, : len(begin)] = begin
        ids = torch.from_numpy(drawn)
    elif kind == "own":
        ids = _sampled(model, n, length + 1, seed)[:, 1:] if first == "none" else _sampled(model, n, length, seed)
    else:
        ids = _written(model, kind, n, length, random, text, begin)
    if first == "replaced":
        ids[:, 0] = torch.from_numpy(random.choice(ordinary, size=n))
    inputs = model.tokens(ids)
    if first == "masked":
        mask = inputs.attention_mask.clone()
        mask[:, 0] = 0
        inputs = replace(inputs, attention_mask=mask)
    return inputs


def _begin(model: LVLM) -> list[int]:
    return [] if model.tokenizer.bos_token_id is None else [model.tokenizer.bos_token_id]


def _ordinary(model: LVLM) -> Int[np.ndarray, " token"]:
    """The ids that stand for no special token."""
    special = set(model.tokenizer.all_special_ids)
    return np.array([i for i in range(len(model.tokenizer)) if i not in special])


def _sampled(model: LVLM, n: int, length: int, seed: int) -> Int[Tensor, "n length"]:
    """What the model writes after its beginning-of-sequence token (an ordinary one where it has none)."""
    begin = _begin(model) or np.random.default_rng(seed).choice(_ordinary(model), size=1).tolist()
    start = model.tokens(torch.tensor([begin] * n))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        options = {"do_sample": True, "top_k": 0, "min_new_tokens": length - 1}
        tokens = model.generate(start, max_new_tokens=length - 1, **options).tokens
    return torch.cat([start.input_ids.cpu(), torch.stack([row.cpu() for row in tokens])], 1)


def _written(
    model: LVLM, kind: str, n: int, length: int, random: np.random.Generator, text: str | None, begin: list[int]
) -> Int[Tensor, "n length"]:
    """Stretches of a text, as they are or as a user's turn, each after the tokens of `begin`."""
    tokenizer = model.tokenizer
    words = NATURAL.read_text(encoding="utf-8") if text is None else text
    ids = tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < length:
        raise ValueError(f"the text has {len(ids)} tokens; a sequence needs {length}")
    if text is not None and len(ids) >= n * length:
        starts = length * random.permutation(len(ids) // length)[:n]
    else:
        starts = random.integers(0, len(ids) - length + 1, n)
    rows = [ids[start : start + length] for start in starts]
    if kind == "chat":
        asked = [model.prompt(tokenizer.decode(row), 0) for row in rows]
        chat = [tokenizer(turn, add_special_tokens=False)["input_ids"] for turn in asked]
        own = _begin(model)
        rows = [row[len(own) :] if row[: len(own)] == own else row for row in chat]
    return torch.tensor([(begin + row)[:length] for row in rows])
