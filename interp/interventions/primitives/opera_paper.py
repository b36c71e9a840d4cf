"""OPERA's search after the paper's text (Huang et al., CVPR 2024, arXiv 2311.17911).

A candidate scores its log-probability minus `alpha phi`; the best columns of the best beam's last `recent` tokens send
it back, and it never goes further back than before.  `among`: probabilities are normalised among a beam's candidates.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.interventions.primitives.opera_released import Penalised, Rules
from interp.interventions.primitives.rereading import Reader, Search, Texts, Wanted
from interp.metrics.over_trust import over_trust


@dataclass(frozen=True)
class Beams:
    """The running beams: tokens, scores, and the best column at each token."""

    ids: Int[Tensor, "beam token"]
    scores: Float[Tensor, " beam"]
    columns: Int[Tensor, "beam token"]

    def select(self, rows: Tensor) -> "Beams":
        """Some of them."""
        return Beams(self.ids[rows], self.scores[rows], self.columns[rows])


class PaperSearch:
    """The search over one prompt."""

    def __init__(self, rules: Rules, recent: int, among: bool, reader: Reader, processed: Penalised) -> None:
        self.rules, self.recent, self.among, self.reader, self.processed = rules, recent, among, reader, processed
        self.texts = reader.start(1)
        self.banned: dict[tuple[int, ...], set[int]] = defaultdict(set)
        self.returns: Counter[int] = Counter()
        self.earliest = 0

    def _candidates(self, beams: Beams) -> tuple[Tensor, Tensor]:
        """The likeliest next tokens of each beam, and their scores before the penalty."""
        scores = self.processed(beams.ids, self.texts.logits.float().log_softmax(-1))
        for row, ids in enumerate(beams.ids.tolist()):
            if banned := self.banned.get(tuple(ids)):
                scores[row, list(banned)] = -torch.inf
        top = scores.topk(self.rules.candidates)
        return top.values.double(), top.indices

    def _extended(self, beams: Beams, scores: Tensor, every: Texts) -> tuple[Beams, Tensor]:
        """Every candidate of every beam, best first, and which of `every` each is."""
        rows = torch.arange(len(scores), device=scores.device).repeat_interleave(scores.shape[1])
        phi, column = over_trust(every.omega, self.rules.sigma)
        weighed = (scores.flatten() - self.rules.alpha * phi).view_as(scores)
        log_p = weighed.log_softmax(-1) if self.among else weighed
        columns = torch.cat([beams.columns[rows], column[:, None]], 1)
        grown = Beams(every.ids, beams.scores[rows] + log_p.flatten().nan_to_num(-torch.inf), columns)
        order = grown.scores.argsort(descending=True, stable=True)
        return grown.select(order), order

    def _way_back(self, best: Beams) -> int | None:
        """How many tokens to keep, if the best beam trusted one token too long; bans what followed it."""
        columns = best.columns[0, -self.recent :].tolist()
        place, times = Counter(columns).most_common(1)[0]
        if not self.rules.rollbacks or times < self.rules.threshold:
            return None
        if self.returns[place] >= self.rules.rollbacks:
            place -= 1
        ids = best.ids[0].tolist()
        followed = self.earliest <= place < len(ids) - 1
        if not followed or self.returns[place] >= self.rules.rollbacks:
            return None
        self.returns[place] += 1
        self.earliest = place
        self.banned[tuple(ids[: place + 1])].add(ids[place + 1])
        return place + 1

    def run(self, limit: int) -> Search:
        """Ends with the best text's tokens."""
        empty, n = self.texts.ids, self.rules.num_beams
        beams = Beams(empty, torch.zeros(1, dtype=torch.double, device=empty.device), empty)
        history, finished = [beams], list[Any]()
        while True:
            scores, tokens = self._candidates(beams)
            read = yield Wanted(self.reader, self.texts, tokens)
            every, order = self._extended(beams, scores, read)
            length, ends = every.ids.shape[1], torch.isin(every.ids[:, -1], self.rules.end)
            possible = every.scores.isfinite()
            leads = torch.arange(len(ends), device=ends.device) < n
            over = possible & leads & (ends if length < limit else torch.ones_like(ends))
            finished += [(float(every.scores[row]) / length, every.ids[row]) for row in over.nonzero()[:, 0]]
            finished = sorted(finished, key=lambda pair: -pair[0])[:n]
            rows = (possible & ~ends).nonzero()[:, 0][:n]
            full = len(finished) == n
            if length == limit or not len(rows) or (full and finished[-1][0] >= float(every.scores[rows[0]]) / length):
                self.texts = read
                return finished[0][1]
            beams, self.texts = every.select(rows), read.select(order[rows])
            keep = self._way_back(beams)
            if keep is None:
                history.append(beams)
                continue
            del history[keep + 1 :]
            finished = [pair for pair in finished if len(pair[1]) <= keep]
            beams = history[keep]
            self.texts = self.reader.at(beams.ids)
