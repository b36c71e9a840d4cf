"""OPERA's slow references against numbers computed by hand."""

from collections import Counter

import numpy as np
import pytest
from references import opera, opera_search

NO = -np.inf


def logs(*p: float) -> np.ndarray:
    return np.log(np.array(p))


def close(got, expected) -> None:
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def attention_of(*rows: list[float]) -> np.ndarray:
    """One head."""
    return np.array([rows], dtype=np.float64)


def test_opera_columns_run_from_the_diagonal():
    window = np.array([[0.5, 9.0], [0.25, 0.1]])
    close(opera.columns(window, 4.0), [2.0 * 1.0, 0.4])


def test_opera_pools_heads_and_normalises_over_all_keys():
    two = np.array([[[1.0, 0.0], [0.5, 0.5]], [[1.0, 0.0], [0.1, 0.9]]])
    close(opera.pooled(two, normalised=False), [[1, 0], [0.5, 0.9]])
    close(opera.pooled(two, normalised=True), [[1, 0], [0.5 / 1.4, 0.9 / 1.4]])


def test_opera_penalty_of_the_paper():
    attention = attention_of([1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.2, 0.6, 0.2, 0], [0.1, 0.3, 0.4, 0.2])
    phi, place = opera.paper_penalty(attention, 1, 2.0)
    close(phi, (2 * 0.5) * (2 * 0.6) * (2 * 0.3))
    assert place == 0
    phi, place = opera.paper_penalty(attention, 1, 2.0, size=1)
    close(phi, 0.4)
    assert place == 2


def test_opera_rewards_the_image_among_ten_tokens():
    attention = attention_of([1, 0, 0], [0.5, 0.5, 0], [0.7, 0.1, 0.2])
    penalty, place = opera.released_penalty(attention, 1, np.array([0]))
    close(penalty, -0.7)
    assert place == 0


def uniform(n: int, value: float) -> np.ndarray:
    """A prompt of one token and a text of n that looks at its first token with `value`, and at the prompt else."""
    attention = np.zeros((1, n + 1, n + 1))
    attention[0, :, 0], attention[0, 0, 0] = 1 - value, 1
    attention[0, 1:, 1] = value
    return attention


@pytest.mark.parametrize(
    ("share", "sigma", "penalty"),
    [(0.5, 2.0, 1e-7), (0.5, 8.0, 1e-7 * 4.0**11), (0.5, 40.0, np.inf), (0.1, 5.0, 0.0)],
)
def test_opera_penalty_after_ten_tokens_is_held_in_sixteen_bits(share, sigma, penalty):
    got, place = opera.released_penalty(uniform(11, share), 1, np.array([0]), sigma)
    np.testing.assert_allclose(got, penalty, rtol=1e-3, atol=2.0**-25)
    assert place == 0
    assert got == float(np.float16(got))


def test_opera_candidates_are_normalised_among_themselves():
    logits = np.log(np.array([4.0, 2.0, 90.0, 1.0]))
    scores = opera.released_scores(logits, [0, 1], [0.0, 0.0], 1.0)
    close(np.exp(scores[:2]), [2 / 3, 1 / 3])
    assert (scores[2:] < -900).all()
    close(opera.paper_scores(logits, [0, 1], [np.log(2), 0.0], 1.0), [np.log(0.5), np.log(0.5), NO, NO])


def test_opera_mode_is_the_smallest_of_the_most_frequent():
    assert opera.mode([7, 3, 3, 7, 9]) == 3


def test_opera_returns_at_the_sixteenth_agreement_of_every_beam():
    history = [[12, 12]] * 15
    assert opera.released_return(history, 12, Counter()) is None
    assert opera.released_return([*history, [12, 11]], 12, Counter()) is None
    assert opera.released_return([*history, [11, 11], [12, 12]], 12, Counter()) == 13
    assert opera.released_return([[9, 9]] * 16, 9, Counter()) is None
    assert opera.released_return([[12, 12]] * 16, 12, Counter({13: 5})) == 12
    assert opera.released_return([[12, 12]] * 16, 12, Counter({13: 5, 12: 5})) is None


def test_opera_return_of_the_paper_needs_fifteen_and_never_goes_further_back():
    places = [1, 4, *[3] * 15]
    assert opera.paper_return(places, 0, Counter(), recent=20) == 4
    assert opera.paper_return(places, 4, Counter(), recent=20) is None
    assert opera.paper_return(places, 0, Counter(), recent=14) is None
    assert opera.paper_return(places, 0, Counter({4: 5}), recent=20) == 3


def test_opera_choice_after_a_return_is_over_the_whole_vocabulary():
    scores = np.exp(opera.returned_scores(np.array([2.0, 5.0, 2.0]), [1]))
    close(scores, [1 / 3, 1 / 3, 1 / 3])
    close(np.exp(opera.returned_scores(logs(0.2, 0.5, 0.3), [])), [0.2, 0.5, 0.3])


def reader(table: dict[tuple[int, ...], list[float]], vocabulary: int = 3):
    """Logits from a table of texts, uniform elsewhere; attention to the prompt's one token only."""

    def read(text: list[int]) -> tuple[np.ndarray, np.ndarray]:
        attention = np.zeros((1, len(text) + 1, len(text) + 1))
        attention[0, :, 0] = 1.0
        return np.log(np.array(table.get(tuple(text), [1.0] * vocabulary))), attention

    return read


def test_opera_search_without_penalty_is_beam_search():
    """Token 2 ends.  Greedy takes 0 (0.6) then gets 0.5; through 1 the text has 0.4 x 0.98."""
    read = reader({(): [0.6, 0.4, 1e-9], (0,): [0.5, 0.49, 0.01], (1,): [0.98, 0.01, 0.01]})
    image = np.array([], dtype=int)
    options = {"end": 2, "limit": 2, "weight": 0, "candidates": 3}
    assert opera_search.search(read, 1, image, beams=1, **options) == [0, 0]
    assert opera_search.search(read, 1, image, beams=2, **options) == [1, 0]


def test_opera_search_ends_and_counts_the_prompt_in_the_length():
    """Text 0 ends with 0.6 x 0.5; its length is its token and three of the prompt."""
    read = reader({(): [0.6, 0.4, 1e-9], (0,): [0.25, 0.25, 0.5], (1,): [0.02, 0.96, 0.02]})
    state = opera_search.State([[0], [1]], [np.log(0.6), np.log(0.4)])
    log_p = np.array([read([0])[0], read([1])[0]])
    after = opera_search.step(state, log_p, end=2, prompt_counted=3)
    assert after is not None
    assert after.finished == [(pytest.approx(np.log(0.3) / 4), [0])]
    assert after.texts == [[1, 1], [0, 0]]
    assert after.taken == [(1, 1), (0, 0)]


@pytest.mark.parametrize(("worst", "stops"), [(np.log(0.6) / 2, True), (np.log(0.4) / 2, False)])
def test_opera_search_stops_when_no_running_text_can_be_better(worst, stops):
    """The best going on has log 0.5, over two tokens."""
    state = opera_search.State([[0]], [0.0], [(worst, [1])])
    assert (opera_search.step(state, logs(0.5, 0.4, 0.1)[None], end=2, prompt_counted=0) is None) == stops
    assert state.finished == [(worst, [1])]


def test_opera_search_goes_back_and_chooses_another_token():
    """Everything after token 10 looks at it: after sixteen steps the search returns, and token 11 becomes another one.

    With that one tokens look at themselves.
    """

    def read(text: list[int]) -> tuple[np.ndarray, np.ndarray]:
        n = len(text) + 1
        last = n if text[11:12] == [1] else 11
        attention = np.zeros((1, n, n))
        attention[0, :, 0], attention[0, 0, 0] = 0.5, 1
        for i in range(1, n):
            attention[0, i, min(i, last)] += 0.5
        return logs(0.7, 0.2, 0.1), attention

    options = {"end": 2, "beams": 1, "candidates": 2, "sigma": 4}
    assert opera_search.search(read, 1, np.array([0]), limit=25, **options) == [0] * 25
    assert opera_search.search(read, 1, np.array([0]), limit=27, **options) == [0] * 11 + [1] + [0] * 15


def test_opera_search_second_return_keeps_what_has_finished():
    """The first way back takes token 1 at place 11, and the text ends after the next; the second finds nothing better.

    It has 0, 1 and the least likely token left, all alike, and 11 log(7/9) + log(1/3) over 12 loses.
    """

    def read(text: list[int]) -> tuple[np.ndarray, np.ndarray]:
        n = len(text) + 1
        attention = np.zeros((1, n, n))
        attention[0, :, 0], attention[0, 0, 0] = 0.5, 1
        for i in range(1, n):
            attention[0, i, min(i, 11)] += 0.5
        if text[11:12] != [1]:
            return logs(0.7, 0.2, 0.1), attention
        return logs(0.4, 0.1, 0.5) if len(text) == 13 else logs(0.999, 0.0006, 0.0004), attention

    options = {"end": 2, "beams": 1, "candidates": 2, "sigma": 4}
    assert opera_search.search(read, 1, np.array([0]), limit=40, **options) == [*[0] * 11, 1, 0]
