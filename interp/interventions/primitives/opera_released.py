"""OPERA's search as its authors' code has it: shikiw/OPERA, `opera_beam_search` @5fc3aa4.

The candidates of a beam are normalised among themselves; what is no candidate has logit `NOTHING`.  The scorer is that
of transformers 4.29: the length of a text counts the prompt's tokens, a picture as one, and not the end token.  Where
the search has gone back to a state before, it finds the texts that have finished since, for the stored state there
holds the scorer and no copy of it.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.interventions.primitives.rereading import Reader, Search, Texts, Wanted
from interp.metrics.over_trust import released_over_trust

NOTHING = -999.0
LEAST = 10
"""The place of the first token to which a search goes back."""

Penalised = Callable[[Int[Tensor, "text token"], Float[Tensor, "text vocabulary"]], Float[Tensor, "text vocabulary"]]
"""What other methods make of the logits that follow texts."""


@dataclass(frozen=True)
class Rules:
    """The settings of a search; `extra` is what a text's length counts beside its own tokens."""

    num_beams: int
    candidates: int
    alpha: float
    sigma: float
    threshold: int
    rollbacks: int
    end: Int[Tensor, " token"]
    extra: int


@dataclass
class State:
    """The beams after some tokens: texts, scores, the (beam, token) each came from, and what had finished by then."""

    ids: Int[Tensor, "beam token"]
    scores: Float[Tensor, " beam"]
    taken: list[tuple[int, int]] = field(default_factory=list)
    finished: list[tuple[float, Tensor]] = field(default_factory=list)


def mode(values: Sequence[int]) -> int:
    """The most frequent value, the smallest of them."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


class ReleasedSearch:
    """The search over one prompt."""

    def __init__(self, rules: Rules, reader: Reader, processed: Penalised) -> None:
        self.rules, self.reader, self.processed = rules, reader, processed
        self.texts = reader.start(rules.num_beams)
        running = torch.full((rules.num_beams,), -1e9, dtype=torch.double, device=self.texts.ids.device)
        running[0] = 0
        self.state = self.holder = State(self.texts.ids, running)
        self.past: list[State] = []
        self.history: list[list[int]] = []
        self.used: Counter[int] = Counter()
        self.rejected: dict[int, list[tuple[int, int]]] = defaultdict(list)

    def run(self, limit: int) -> Search:
        """Ends with the best text's tokens."""
        while True:
            logits = self.processed(self.texts.ids, self.texts.logits.float()).double()
            tokens = logits.argsort(dim=-1, descending=True, stable=True)[:, : self.rules.candidates]
            every = yield Wanted(self.reader, self.texts, tokens)
            log_p = self._judged(logits, tokens, every)
            back = self._way_back()
            again = back is not None
            if back is not None:
                logits = self.processed(self.texts.ids, self.texts.logits.float()).double()
                log_p = self._anew(logits, back)
            found = self._step(log_p)
            if found is not None:
                return found
            if self.state.ids.shape[1] == limit:
                return self._best_of_all(limit)
            self._read(None if again else every, tokens)

    def _judged(self, logits: Tensor, tokens: Tensor, every: Texts) -> Tensor:
        """Log-probabilities `[beam, vocabulary]` of candidates, penalised by what they look at."""
        penalty, place = released_over_trust(every.omega, every.looks, self.rules.sigma)
        weighed = self.rules.alpha * penalty if self.rules.alpha else torch.zeros_like(penalty)
        scores = torch.where(logits.isfinite(), NOTHING, logits)
        scores = scores.scatter(-1, tokens, logits.gather(-1, tokens) - weighed.view_as(tokens))
        self.past.append(self.state)
        self.history.append([mode(places) for places in place.view_as(tokens).tolist()])
        return scores.log_softmax(-1)

    def _way_back(self) -> int | None:
        """How many tokens to keep, if every beam trusts one token too long; the search is then there."""
        r = self.rules
        place = mode(self.history[-1])
        agreed = all(sum(step[i] == place for step in self.history) > r.threshold for i in range(r.num_beams))
        if not r.rollbacks or not agreed or place < LEAST:
            return None
        keep = next((length for length in (place + 1, place) if self.used[length] < r.rollbacks), None)
        if keep is None or keep + 1 >= len(self.past):  # nothing followed it
            return None
        self.used[keep] += 1
        self.rejected[keep] += self.past[keep + 1].taken
        self.rejected[keep + 1] = []
        del self.past[keep + 1 :], self.history[keep + 1 :]
        self.state = self.holder = self.past[keep]
        self.texts = self.reader.at(self.state.ids)
        return keep

    def _anew(self, logits: Tensor, keep: int) -> Tensor:
        """Log-probabilities after a way back: of all tokens but those taken from there before."""
        least = torch.where(logits.isfinite(), logits, torch.inf).amin(-1, keepdim=True)
        scores = logits - least + NOTHING
        for beam, token in self.rejected[keep]:
            scores[beam, token] = NOTHING
        return scores.log_softmax(-1)

    def _step(self, log_p: Tensor) -> Tensor | None:
        """Go on to the best next tokens; the best text where the search is over."""
        r, before = self.rules, self.state
        flat = (before.scores[:, None] + log_p).flatten()
        order = flat.argsort(descending=True, stable=True)[: 2 * r.num_beams]
        length = before.ids.shape[1] + r.extra
        finished, taken, scores = list(before.finished), list[tuple[int, int]](), list[float]()
        for rank, place in enumerate(order.tolist()):
            beam, token = divmod(place, log_p.shape[1])
            score = float(flat[place])
            if not bool((r.end == token).any()):
                taken.append((beam, token))
                scores.append(score)
            elif rank < r.num_beams:
                finished.append((score / max(length, 1), before.ids[beam]))
                finished = sorted(finished, key=lambda pair: -pair[0])[: r.num_beams]
            if len(taken) == r.num_beams:
                break
        if len(finished) == r.num_beams and finished[-1][0] >= float(flat[order[0]]) / (length + 1):
            return finished[0][1]
        beams, tokens = (torch.tensor(column, device=flat.device) for column in zip(*taken, strict=True))
        ids = torch.cat([before.ids[beams], tokens[:, None]], 1)
        self.state = State(ids, torch.tensor(scores, dtype=torch.double, device=flat.device), taken, finished)
        self.holder.finished = finished
        return None

    def _best_of_all(self, limit: int) -> Tensor:
        """The best text when no more tokens are to be written."""
        state = self.state
        ended = list(zip((state.scores / (limit + self.rules.extra)).tolist(), state.ids, strict=True))
        return max([*state.finished, *ended], key=lambda pair: pair[0])[1]

    def _read(self, every: Texts | None, tokens: Tensor) -> None:
        """Read the beams' last tokens, or find them among the candidates that were read."""
        if every is not None:
            rows = [(beam, (tokens[beam] == token).nonzero()) for beam, token in self.state.taken]
            if all(len(where) for _, where in rows):
                at = [beam * tokens.shape[1] + int(where[0]) for beam, where in rows]
                self.texts = every.select(torch.tensor(at, device=tokens.device))
                return
        self.texts = self.reader.at(self.state.ids)
