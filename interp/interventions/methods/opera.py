"""OPERA: a penalty on trusting summary tokens in beam search, and a way back where they are trusted too long.

Huang et al., "OPERA: Alleviating Hallucination in Multi-Modal Large Language Models via Over-Trust Penalty and
Retrospection-Allocation", CVPR 2024, arXiv 2311.17911.

Among generated tokens, `omega[i, j]` is the largest probability over the heads of the last layer with which token i
attends to token j.  `phi` is the largest over columns j of the product over rows i >= j of `sigma omega[i, j]`; a
candidate scores `log p - alpha phi`, with its own row in the product (hence a forward pass for each candidate).  Where
the best columns of the best beam's last `recent` tokens coincide `threshold` times, at a place s, the search goes back
to the tokens up to s and takes another one there: at most `rollbacks` times at a place, then one place earlier, and
never further back than before.

Readings: `recent` is not given by the paper.  Probabilities stay normalised over the vocabulary, so that `alpha=0`
without ways back is beam search.  Each prompt is searched by itself.
"""

import copy
from collections import Counter, defaultdict
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from interp.interventions.base import Count, Method, Weight, Within
from interp.interventions.primitives.continuation import Continuation
from interp.metrics.over_trust import over_trust
from interp.models import LVLM, AttentionCall, GenerateOptions, Inputs, Searched
from interp.models.kernels import watched


@dataclass(frozen=True)
class _Beams:
    """The running beams of a prompt: tokens, scores, attention among the tokens, and the best column at each."""

    ids: Int[Tensor, "beam token"]
    scores: Float[Tensor, " beam"]
    omega: Float[Tensor, "beam token token"]
    columns: Int[Tensor, "beam token"]

    def select(self, rows: Tensor) -> "_Beams":
        return _Beams(self.ids[rows], self.scores[rows], self.omega[rows], self.columns[rows])


class _Search:
    """OPERA's beam search over one prompt."""

    def __init__(self, method: "OPERA", model: LVLM, prompt: Continuation, logits: Tensor, end: Any) -> None:
        self.method, self.model, self.prompt, self.first, self.end = method, model, prompt, logits, end
        self.banned: dict[tuple[int, ...], set[int]] = defaultdict(set)
        self.returns: Counter[int] = Counter()
        self.earliest = 0
        self.seen: list[Tensor] = []
        self.layers: list[Any] = []

    def watch(self, call: AttentionCall) -> None:
        """Note how the tokens that are read now attend."""
        self.seen[:] = [call.pattern().float().amax(1)]

    def grown(self, omega: Tensor, ids: Tensor) -> Tensor:
        """Attention among generated tokens, with the rows of the tokens just read."""
        length = omega.shape[1] + ids.shape[1]
        new = self.seen[0][:, -ids.shape[1] :, -length:].to(omega)
        new = torch.nn.functional.pad(new, (length - new.shape[-1], 0))  # a sliding window may hold fewer keys
        return torch.cat([torch.nn.functional.pad(omega, (0, ids.shape[1])), new], 1)

    def at(self, ids: Tensor) -> tuple[Continuation, Tensor]:
        """The prompt and generated tokens, read anew; the logits that follow."""
        text = copy.copy(self.prompt)
        text.cache = copy.deepcopy(self.prompt.cache)
        text.select(torch.zeros(len(ids), dtype=torch.long, device=ids.device))
        return (text, text.feed(ids)) if ids.shape[1] else (text, self.first.expand(len(ids), -1))

    def candidates(self, beams: _Beams, logits: Tensor, processor: Any) -> tuple[Tensor, Tensor]:
        """The most probable next tokens of each beam and their log-probabilities."""
        log_p = processor(self.end.full(beams.ids), logits.float().log_softmax(-1))
        for row, ids in enumerate(beams.ids.tolist()):
            if banned := self.banned.get(tuple(ids)):
                log_p[row, list(banned)] = -torch.inf
        top = log_p.topk(self.method.candidates)
        return top.values, top.indices

    def extended(
        self, beams: _Beams, text: Continuation, logits: Tensor, processor: Any
    ) -> tuple[_Beams, Tensor, Tensor]:
        """Every candidate of every beam, best first, with the logits that follow it and its row in `text`."""
        log_p, tokens = self.candidates(beams, logits, processor)
        rows = torch.arange(len(tokens), device=tokens.device).repeat_interleave(tokens.shape[1])
        text.select(rows)
        ids = tokens.flatten()[:, None]
        logits = text.feed(ids)
        every = beams.select(rows)
        omega = self.grown(every.omega, ids)
        phi, column = over_trust(omega, self.method.sigma)
        scores = every.scores + log_p.flatten() - self.method.alpha * phi
        grown = _Beams(torch.cat([every.ids, ids], 1), scores, omega, torch.cat([every.columns, column[:, None]], 1))
        order = scores.argsort(descending=True, stable=True)
        return grown.select(order), logits[order], order

    def way_back(self, best: _Beams) -> int | None:
        """How many tokens to keep, if the best beam trusted one token too long; bans what followed it."""
        columns = best.columns[0, -self.method.recent :].tolist()
        place, times = Counter(columns).most_common(1)[0]
        if not self.method.rollbacks or times < self.method.threshold:
            return None
        if self.returns[place] >= self.method.rollbacks:
            place -= 1
        ids = best.ids[0].tolist()
        followed = self.earliest <= place < len(ids) - 1
        if not followed or self.returns[place] >= self.method.rollbacks:
            return None
        self.returns[place] += 1
        self.earliest = place
        self.banned[tuple(ids[: place + 1])].add(ids[place + 1])
        return place + 1

    def run(self, processor: Any, limit: int) -> Tensor:
        """The best text's tokens."""
        device = self.first.device
        empty = torch.empty(1, 0, dtype=torch.long, device=device)
        beams = _Beams(empty, torch.zeros(1, device=device).double(), torch.empty(1, 0, 0, device=device), empty)
        history, finished = [beams], list[tuple[float, Tensor]]()
        text, logits = self.at(beams.ids)
        while True:
            every, logits, row_of = self.extended(beams, text, logits, processor)
            length, ends = every.ids.shape[1], torch.isin(every.ids[:, -1], self.end.tokens)
            possible = every.scores.isfinite()
            leads = torch.arange(len(ends), device=device) < self.method.num_beams
            over = possible & leads & (ends if length < limit else torch.ones_like(ends))
            finished += [(float(every.scores[row]) / length, every.ids[row]) for row in over.nonzero()[:, 0]]
            finished = sorted(finished, key=lambda pair: -pair[0])[: self.method.num_beams]
            rows = (possible & ~ends).nonzero()[:, 0][: self.method.num_beams]
            full = len(finished) == self.method.num_beams
            if length == limit or not len(rows) or (full and finished[-1][0] >= float(every.scores[rows[0]]) / length):
                self.layers = text.cache.layers
                return finished[0][1]
            beams, logits = every.select(rows), logits[rows]
            keep = self.way_back(beams)
            if keep is None:
                text.select(row_of[rows])
                history.append(beams)
                continue
            del history[keep + 1 :]
            finished = [pair for pair in finished if len(pair[1]) <= keep]
            beams = history[keep]
            text, logits = self.at(beams.ids)


class _End:
    """Where texts end, and the prompt that logits processors expect before them."""

    def __init__(self, prompt: Tensor, tokens: Tensor) -> None:
        self.prompt, self.tokens = prompt, tokens

    def full(self, ids: Tensor) -> Tensor:
        return torch.cat([self.prompt.expand(len(ids), -1), ids], 1)


@dataclass(frozen=True)
class OPERA(Method):
    """Beam search that distrusts summary tokens.

    `alpha`: weight of the over-trust penalty; `sigma`: scale of the attention in it; `candidates`: tokens tried for
    each beam; `threshold` coincidences among the last `recent` tokens send the search back, `rollbacks` times at most.
    """

    num_beams: Annotated[int, Within(1, 1000)] = 5
    candidates: Annotated[int, Within(1, 1000)] = 5
    alpha: Weight = 1.0
    sigma: Annotated[float, Within(0, 1e6, above=True)] = 50.0
    threshold: Count = 15
    recent: Count = 20
    rollbacks: Annotated[int, Within(0, 1000)] = 5

    citation: ClassVar = "Huang et al., CVPR 2024, arXiv 2311.17911"
    cost: ClassVar = "a row for each candidate of each beam; one prompt at a time"
    off: ClassVar = "num_beams=1:alpha=0:rollbacks=0"
    passes: ClassVar = {"main": "its own passes are those from which the text is written"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.candidates < self.num_beams:
            raise ValueError(f"expected at least as many candidates as beams, got {self.candidates} < {self.num_beams}")

    def steer(self, model: LVLM, inputs: Inputs) -> AbstractContextManager[GenerateOptions]:
        """Search in place of generate's own loop."""
        return nullcontext(GenerateOptions(search=partial(self._search, model, inputs)))

    def _search(
        self, model: LVLM, inputs: Inputs, processor: LogitsProcessorList, config: GenerationConfig
    ) -> Searched:
        """Search one prompt after the other."""
        if (config.num_beams or 1) > 1 or config.do_sample:
            raise ValueError("OPERA has beams of its own (num_beams=), expected neither num_beams nor do_sample")
        limit = config.max_length - inputs.input_ids.shape[1]
        together = Continuation(model, inputs, "main")
        logits = together.start()
        eos = torch.tensor([config.eos_token_id or []], device=logits.device).flatten().long()
        texts, layers = [], list[Any]()
        for row in range(len(inputs.input_ids)):
            prompt = copy.copy(together)
            prompt.cache = copy.deepcopy(together.cache)
            prompt.select(torch.tensor([row], device=logits.device))
            end = _End(inputs.input_ids[row : row + 1], eos)
            search = _Search(self, model, prompt, logits[row : row + 1], end)
            with watched(model.decoder_configs, {model.part(model.n_layers - 1, model.family.attention): search.watch}):
                texts.append(search.run(processor, limit))
            layers += search.layers
        longest = max(len(text) for text in texts)
        filler = int(eos[0]) if len(eos) else inputs.pad_token_id
        rows = torch.stack([torch.nn.functional.pad(t, (0, longest - len(t)), value=filler) for t in texts])
        return Searched(torch.cat([inputs.input_ids, rows], 1), layers)
