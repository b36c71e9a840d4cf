import math

import pytest
import torch

from interp.metrics.attention import SELECTED, received, sink_rate, squared_selection
from interp.metrics.ranking import auroc, spearman, stratified_auroc
from interp.metrics.vhd import default_top_k, head_divergence, token_divergence


def test_head_divergence_is_the_euclidean_distance_not_its_square():
    a = torch.tensor([[[3.0, 4.0], [1.0, 1.0]]])
    b = torch.tensor([[[0.0, 0.0], [1.0, 1.0]]])
    assert head_divergence(a, b).tolist() == [[5.0, 0.0]]


def test_token_divergence_sums_the_largest_heads_of_each_layer():
    vhd = torch.tensor([[[1.0, 5.0, 3.0], [2.0, 2.0, 9.0]]])
    assert token_divergence(vhd, 1).tolist() == [14.0]
    assert token_divergence(vhd, 2).tolist() == [19.0]
    with pytest.raises(ValueError, match="between 1 and the 3 heads"):
        token_divergence(vhd, 4)


def test_default_top_k_is_an_eighth_of_the_heads_at_least_one():
    assert [default_top_k(n) for n in (4, 8, 32)] == [1, 1, 4]


def test_auroc_by_hand():
    assert auroc([1, 2, 3, 4], [False, False, True, True]) == 1
    assert auroc([1, 1], [True, False]) == 0.5
    assert auroc([1, 3, 2, 2], [False, True, True, False]) == 3.5 / 4
    assert auroc([1, 2], [True, True]) is None
    assert auroc([], []) is None


def test_stratified_auroc_removes_a_confounder():
    """The score only tells the strata apart; within a stratum it says nothing."""
    scores = [1, 1, 1, 2, 2, 2]
    positive = [False, False, True, False, True, True]
    strata = [0, 0, 0, 1, 1, 1]
    whole = auroc(scores, positive)
    assert whole is not None
    assert whole > 0.6
    assert stratified_auroc(scores, positive, strata) == 0.5
    assert stratified_auroc([1, 2], [True, False], [0, 1]) is None


def test_attention_received_by_hand():
    attention = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.6, 0.2, 0.2]])
    torch.testing.assert_close(received(attention), torch.tensor([2.1 / 3, 0.7 / 2, 0.2]))


def test_sink_rate_counts_heads_strictly_above_eps():
    uniform = torch.tril(torch.ones(64, 64)) / torch.arange(1, 65)[:, None]
    assert received(uniform)[0].item() == pytest.approx(sum(1 / t for t in range(1, 65)) / 64)
    sink = torch.zeros(64, 64)
    sink[:, 0] = 1
    assert sink_rate(torch.stack([uniform, sink, sink, sink])) == 75
    assert sink_rate(sink[None], eps=1.0) == 0
    assert math.isclose(sink_rate(sink[None], key=1), 0)


def test_selection_by_squared_score_by_hand():
    """Of four visible keys the top half by square is -3 and 2: one strongly negative, holding little attention."""
    scores = torch.tensor([2.0, -0.5, -3.0, 1.0, -torch.inf])[None, None, None]
    found = squared_selection(scores, scores.softmax(-1)).squared[0, 0, 0, SELECTED.index(0.5)]
    p = scores.softmax(-1)[0, 0, 0]
    torch.testing.assert_close(found, torch.stack([torch.tensor(0.5), torch.tensor(0.5), p[0] + p[2], p[0] + p[3]]))
    last = squared_selection(scores, scores.softmax(-1)).squared[0, 0, 0, SELECTED.index(0.9)]
    torch.testing.assert_close(last[:2], torch.tensor([0.5, 0.25]))


def test_spearman():
    assert spearman([1, 2, 3], [10, 20, 30]) == pytest.approx(1.0)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert spearman([1, 2, 2, 3], [1, 2, 2, 3]) == pytest.approx(1.0)
    assert spearman([1, 1], [1, 2]) is None
