"""The mathematics, on hand-computed tensors."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from interp.metrics.attention import SELECTED, received, sink_rate, squared_selection
from interp.metrics.contrast import contrast_logits, farthest, growing_weight, layer_contrast
from interp.metrics.over_trust import over_trust
from interp.metrics.ranking import auroc, spearman, stratified_auroc
from interp.metrics.selection import density_peaks, membership, penalised, running_softmax, top_mask
from interp.metrics.vhd import (
    default_top_k,
    head_divergence,
    negative_outliers,
    token_divergence,
    vision_aware_heads,
)


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


def test_vision_aware_heads_are_above_the_median():
    vhd = torch.tensor([4.0, 1.0, 3.0, 2.0])
    assert vision_aware_heads(vhd, torch.ones(4)).tolist() == [True, False, True, False]


def test_a_head_is_an_outlier_only_if_both_values_are_high():
    vhd = torch.tensor([[10.0, 1.0, 2.0, 3.0], [10.0, 1.0, 2.0, 3.0]])
    energy = torch.tensor([[9.0, 1.0, 1.0, 1.0], [1.0, 9.0, 1.0, 1.0]])
    assert negative_outliers(vhd, energy).tolist() == [[True, False, False, False], [False] * 4]
    # head 0 is set to zero, so the median falls between 1 and 2
    assert vision_aware_heads(vhd, energy).tolist() == [[False, False, True, True], [True, False, False, True]]


def test_the_kind_of_standard_deviation_decides_borderline_heads():
    """mean 2, sample deviation 1.155, population deviation 1: 3.1 lies between the two thresholds."""
    vhd = torch.tensor([3.1, 0.9, 2.9, 1.1])
    sample = vhd.mean() + vhd.std()
    population = vhd.mean() + vhd.std(correction=0)
    assert population < 3.1 < sample
    assert not negative_outliers(vhd, vhd, "sample").any()
    assert negative_outliers(vhd, vhd, "population").tolist() == [True, False, False, False]


def test_without_the_outlier_rule_more_heads_are_candidates():
    vhd, energy = torch.tensor([9.0, 1.0, 2.0, 3.0]), torch.tensor([9.0, 0.0, 0.0, 0.0])
    assert vision_aware_heads(vhd, energy).tolist() == [False, False, True, True]
    assert vision_aware_heads(vhd, energy, outliers=False).tolist() == [True, False, False, True]


def test_the_penalty_by_hand():
    omega = torch.tensor([[[0.5, 9.0, 9.0], [0.4, 0.1, 9.0], [0.3, 0.2, 0.6]]])
    # columns: 5 * 4 * 3 = 60, 1 * 2 = 2, 6; what lies above the diagonal does not count
    phi, column = over_trust(omega, 10.0)
    assert phi.item() == pytest.approx(60)
    assert column.item() == 0
    phi, column = over_trust(omega, 2.0)
    assert phi.item() == pytest.approx(1.2), "columns 0.48, 0.08 and 1.2"
    assert column.item() == 2


def test_the_farthest_layer_by_hand():
    last = torch.tensor([[0.9, 0.1], [0.5, 0.5]]).log()
    early = torch.tensor([[[0.8, 0.2], [0.01, 0.99]], [[0.1, 0.9], [0.4, 0.6]]]).log()
    torch.testing.assert_close(farthest(last, early).exp(), torch.tensor([[0.1, 0.9], [0.01, 0.99]]))
    assert math.isclose(farthest(last, early)[0].exp().sum().item(), 1.0, rel_tol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_theorem_1_by_brute_force(seed):
    """Keeping the top S of `delta` minimises `sum (y - M y)^2 - lambda P M` over all masks of size S, ties included."""
    random = torch.Generator().manual_seed(seed)
    y = torch.randint(-3, 4, (6,), generator=random).double()  # small integers tie often
    p = torch.rand(6, generator=random).double().softmax(0)
    p[1] = p[4]
    for size in range(1, 7):
        kept = top_mask(y**2 + 0.1 * p, torch.ones(6, dtype=torch.bool), size / 6)
        assert kept.sum() == size

        def loss(m: Tensor) -> float:
            return float(((y - m * y) ** 2 - 0.1 * p * m).sum())

        masks = (torch.tensor(m) for m in itertools.product([0.0, 1.0], repeat=6) if sum(m) == size)
        assert loss(kept.double()) == pytest.approx(min(loss(m.double()) for m in masks))


def test_delta_p_w_and_penalty_by_hand():
    delta = torch.tensor([[4.0, 9.0, 1.0, 9.0]])
    scope = torch.tensor([[True, True, True, True]])
    assert top_mask(delta, scope, 0.5).tolist() == [[False, True, False, True]]
    assert top_mask(delta, torch.tensor([[True, False, True, True]]), 0.4).tolist() == [[True, False, False, True]]
    assert top_mask(delta, scope, 0.25).tolist() == [[False, True, False, False]], "the earlier one where they tie"
    p = running_softmax(torch.tensor([[0.0, math.log(2), math.log(3)]]), torch.tril(torch.ones(3, 3)).bool())
    torch.testing.assert_close(p[0], torch.tensor([[1.0, 0, 0], [1 / 3, 2 / 3, 0], [1 / 6, 2 / 6, 3 / 6]]))
    scores, weights = torch.tensor([[2.0, -1.0, -torch.inf]]), torch.tensor([[0.5, 0.5, 0.0]])
    torch.testing.assert_close(penalised(scores, weights, 0.1), torch.tensor([[2.1, -1.05, -torch.inf]]))


def test_svcd_logits_by_hand():
    theta, phi = torch.tensor([[2.0, 1.0, -5.0]]), torch.tensor([[1.0, 2.0, 0.0]])
    found = contrast_logits(theta, phi, alpha=1.0, plausibility=0.1)
    assert found[0, 2] == -torch.inf, "implausible to theta, whatever phi says"
    assert (found[0, 0] - found[0, 1]).item() == pytest.approx(2 * (2 - 1) - (1 - 2))
    torch.testing.assert_close(contrast_logits(theta, phi, 0.0, 0.0), theta.log_softmax(-1))


def test_clusters_of_two_heaps():
    points = torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.0, 0.1], [1.0, 1.0], [1.1, 1.0]])
    cluster = density_peaks(points, 2, 1).tolist()
    assert len(set(cluster[:3])) == 1
    assert len(set(cluster[3:])) == 1
    assert cluster[0] != cluster[3]
    dropped = torch.tensor([[False, True, True, True, True]])
    member = membership(points[None], dropped, 4, 0.5, 1)
    assert member.shape == (1, 2, 5)
    assert sorted((member.float() @ points)[0].sum(-1).tolist()) == pytest.approx([0.2, 4.1]), "sums of the members"
    assert torch.equal(member.any(1), dropped)
    assert torch.equal(membership(points[None], dropped, 4, 0.1, 1)[:, 0], dropped), "a single cluster is all of them"


def test_a_forbidden_token_does_not_hide_the_farthest_layer():
    last = torch.tensor([[0.9, 0.1, 0.0]]).log()
    early = torch.tensor([[[0.8, 0.1, 0.1]], [[0.1, 0.8, 0.1]]]).log()
    torch.testing.assert_close(farthest(last, early), early[1])


def test_layers_are_contrasted_among_tokens_plausible_to_the_last_one():
    """`log p - log q` where p is at least half of the largest: ln 6 and ln 0.5, before they are normalised."""
    last, early = torch.tensor([[0.6, 0.3, 0.1]]).log(), torch.tensor([[[0.1, 0.6, 0.3]]]).log()
    found = layer_contrast(last, last, early, 0.5)
    torch.testing.assert_close(found[0, 0] - found[0, 1], torch.tensor(math.log(12)))
    assert found[0, 2] == -torch.inf
    shifted = layer_contrast(last + torch.tensor([0.0, 1.0, 9.0]), last, early, 0.5)
    assert shifted[0, 2] == -torch.inf, "the layer and the plausible tokens are the last layer's own choice"
    torch.testing.assert_close(shifted[0, 0] - shifted[0, 1], torch.tensor(math.log(12) - 1.0))


def test_the_weight_of_m3id_grows_and_stays_a_number():
    g = math.exp(-0.02 * 3)
    assert growing_weight(0.02, 3) == pytest.approx((1 - g) / g)
    assert growing_weight(0.0, 3) == 0
    assert math.isfinite(growing_weight(1.0, 5000))
