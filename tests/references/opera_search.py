"""OPERA's whole search, slow: every text read anew from its first token, after `opera_beam_search` @5fc3aa4.

The beam scorer is that of transformers 4.29: finished texts count `prompt_counted` tokens of the prompt and not the
end token in their length; the search stops when all places for finished texts are taken and no running one can be
better.  Ties: the earlier beam, then the smaller token.  A second way back to one place finds the texts that finished
since the first one, for the stored state there holds the scorer itself and no copy.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field

import numpy as np

from references import opera
from references.softmax import largest

Read = Callable[[list[int]], tuple[np.ndarray, np.ndarray]]
"""From a text: the logits that follow it `[vocabulary]` and the last layer's attention over prompt and text."""


@dataclass
class State:
    """The beams after some tokens: texts, scores, finished texts, and which (beam, token) each beam came from."""

    texts: list[list[int]]
    scores: list[float]
    finished: list[tuple[float, list[int]]] = field(default_factory=list)
    taken: list[tuple[int, int]] = field(default_factory=list)


def looked_at(
    read: Read, state: State, start: int, image: np.ndarray, number: int, weight: float, sigma: float
) -> tuple[np.ndarray, list[int]]:
    """Each beam's log-probabilities `[beam, vocabulary]`, penalised, and the place that its candidates trust."""
    rows, places = [], []
    for text in state.texts:
        logits = read(text)[0]
        tokens = opera.candidates_of(logits, number)
        judged = [opera.released_penalty(read([*text, token])[1], start, image, sigma) for token in tokens]
        rows.append(opera.released_scores(logits, tokens, [penalty for penalty, _ in judged], weight))
        places.append(opera.mode([place for _, place in judged]))
    return np.array(rows), places


def step(state: State, log_p: np.ndarray, end: int, prompt_counted: int) -> State | None:
    """The beams one token later; None when the search is over (its finished texts are then in `state`)."""
    beams, vocabulary = log_p.shape
    flat = (np.array(state.scores)[:, None] + log_p).ravel()
    order = largest(flat, 2 * beams)
    new = State([], [], deepcopy(state.finished))
    for rank, place in enumerate(order):
        beam, token = divmod(int(place), vocabulary)
        if token != end:
            new.texts.append([*state.texts[beam], token])
            new.scores.append(float(flat[place]))
            new.taken.append((beam, token))
        elif rank < beams:
            text = state.texts[beam]
            new.finished.append((float(flat[place]) / max(len(text) + prompt_counted, 1), text))
            new.finished = sorted(new.finished, key=lambda pair: -pair[0])[:beams]
        if len(new.texts) == beams:
            break
    length = len(state.texts[0]) + prompt_counted + 1
    if len(new.finished) == beams and new.finished[-1][0] >= flat[order[0]] / length:
        state.finished = new.finished
        return None
    return new


def search(
    read: Read,
    start: int,
    image: np.ndarray,
    end: int,
    limit: int,
    *,
    beams: int = 5,
    candidates: int = 5,
    threshold: int = 15,
    weight: float = 1.0,
    sigma: float = 50.0,
    prompt_counted: int = 0,
) -> list[int]:
    """The best text without its end token; `start` is the length of the prompt in the attention maps."""
    state = State([[] for _ in range(beams)], [0.0] + [-1e9] * (beams - 1))
    past: list[State] = []
    history: list[list[int]] = []
    used: Counter[int] = Counter()
    rejected: dict[int, list[tuple[int, int]]] = defaultdict(list)
    holder = State([], [])  # the stored state that shares its finished texts with the search
    while True:
        log_p, places = looked_at(read, state, start, image, candidates, weight, sigma)
        past.append(state)
        history.append(places)
        back = opera.released_return(history, opera.mode(places), used, candidates, threshold)
        if back is not None:
            used[back] += 1
            rejected[back] += past[back + 1].taken
            rejected[back + 1] = []
            del past[back + 1 :], history[back + 1 :]
            state = holder = past[back]
            log_p = np.array(
                [
                    opera.returned_scores(read(text)[0], [token for row, token in rejected[back] if row == beam])
                    for beam, text in enumerate(state.texts)
                ]
            )
        following = step(state, log_p, end, prompt_counted)
        if following is None:
            return state.finished[0][1]
        state = following
        holder.finished = state.finished
        if len(state.texts[0]) == limit:
            ended = [(s / (limit + prompt_counted), t) for s, t in zip(state.scores, state.texts, strict=True)]
            return max([*state.finished, *ended], key=lambda pair: pair[0])[1]
