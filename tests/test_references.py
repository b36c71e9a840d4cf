"""The slow references against numbers computed by hand; OPERA's have a file of their own."""

import numpy as np
from references import (
    avisc,
    deco,
    dola,
    fastv,
    h2o,
    icd,
    m3id,
    pai,
    snapkv,
    spin,
    streaming_llm,
    vasparse,
    vcd,
)
from references.softmax import causal, largest, log_softmax, softmax

NO = -np.inf


def logs(*p: float) -> np.ndarray:
    return np.log(np.array(p))


def close(got, expected) -> None:
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


# softmax


def test_softmax_of_log_probabilities_gives_them_back():
    close(softmax(logs(0.1, 0.2, 0.7)), [0.1, 0.2, 0.7])
    close(log_softmax(np.array([5.0, NO, 5.0])), [-np.log(2), NO, -np.log(2)])


def test_causal_attention_of_the_last_queries():
    close(causal(np.zeros((1, 2, 3)))[0], [[1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3]])


def test_the_earlier_of_equal_values_is_larger():
    assert largest(np.array([1, 3, 3, 2]), 2).tolist() == [1, 2]


# VCD and ICD


def test_vcd_schedule():
    signal, deviation = vcd.schedule()
    first = 1e-5 + (0.005 - 1e-5) / (1 + np.exp(6))
    close(deviation[0] ** 2, first)
    close(signal**2 + deviation**2, np.ones(1000))
    np.testing.assert_allclose([signal[500], deviation[500]], [0.86302, 0.50517], atol=1e-5)
    np.testing.assert_allclose([signal[999], deviation[999]], [0.28504, 0.95851], atol=1e-5)
    close(vcd.noised(np.array([2.0]), np.array([-1.0]), 999), 2 * signal[999] - deviation[999])


def test_vcd_contrast_keeps_a_token_at_the_floor():
    theta = np.array([0.0, np.log(0.5), np.log(0.4)])
    close(vcd.contrast(theta, np.array([1.0, 0.0, 0.0]), 1.0, 0.5), [-1, 2 * np.log(0.5), NO])


def test_icd_is_the_same_contrast_and_two_are_added():
    theta, phi, picture = np.array([1.0, 0.5, -3.0]), np.array([0.0, 2.0, 0.0]), np.array([1.0, 1.0, 1.0])
    close(icd.released(theta, phi), [2.0, -1.0, NO])
    close(icd.released(theta, phi), vcd.contrast(theta, phi, 1.0, 0.1))
    close(icd.with_picture(theta, phi, picture, 1.0, 0.1), [2.0 + 1.0, -1.0 + 0.0, NO])


# M3ID and PAI


def test_m3id_forgets_and_acts_below_the_confidence_only():
    close(m3id.weight(1, np.log(2)), 1)
    close(m3id.weight(2, np.log(2)), 3)
    theta, phi = logs(0.6, 0.4), logs(0.5, 0.5)
    close(m3id.paper(theta, phi, 1, np.log(2), 0.5), theta)
    close(m3id.paper(theta, phi, 1, np.log(2), 0.7), logs(0.72, 0.32))


def test_m3id_of_avisc_acts_always_and_has_a_floor():
    theta, phi = logs(0.9, 0.08, 0.02), logs(0.5, 0.25, 0.25)
    close(m3id.avisc(theta, phi, 1, np.log(2)), [np.log(0.81 / 0.5), NO, NO])
    close(m3id.avisc(theta, phi, 1, np.log(2), beta=0.05), [np.log(0.81 / 0.5), np.log(0.0064 / 0.25), NO])


def test_pai_raises_negative_scores_too_and_only_the_last_query():
    scores = np.array([[[1.0, -2.0, 3.0], [1.0, -2.0, 3.0]]])
    pushed = pai.pushed(scores, np.array([True, True, False]), 0.5)
    close(pushed, [[[1, -2, 3], [1.5, -1, 3]]])
    close(scores[0, 1], [1, -2, 3])


def test_pai_pushes_from_the_second_token_on_with_the_contrast():
    assert [pai.pushes(step, 1.1) for step in (0, 1)] == [False, True]
    assert [pai.pushes(step, None) for step in (0, 1)] == [True, True]


def test_pai_contrast():
    theta, phi = logs(0.8, 0.17, 0.03), logs(0.4, 0.5, 0.1)
    close(pai.contrast(theta, phi, 2.0), [np.log(0.64 / 0.4), np.log(0.17**2 / 0.5), NO])
    close(pai.contrast(theta, phi, 1), theta)


# DoLa


def test_dola_divergences_of_two_tokens():
    final, early = logs(0.5, 0.5), logs(0.9, 0.1)
    close(dola.kl(final, early), 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1))
    paper = 0.5 * np.log(0.5 / 0.7) + 0.5 * np.log(0.5 / 0.3) + 0.9 * np.log(0.9 / 0.7) + 0.1 * np.log(0.1 / 0.3)
    close(dola.divergence(final, early, released=False), paper / 2)
    released = 0.7 * np.log(0.7 / 0.5) + 0.3 * np.log(0.3 / 0.5) + 0.7 * np.log(0.7 / 0.9) + 0.3 * np.log(0.3 / 0.1)
    close(dola.divergence(final, early, released=True), released / 2)


def test_dola_divergences_can_choose_different_layers():
    """Layer 0 differs where the mass is, layer 1 in a token that the last layer all but excludes."""
    final = logs(0.6, 0.4, 1e-12)[None]
    early = np.array([logs(0.3, 0.7, 1e-12)[None], logs(0.59, 0.39, 0.02)[None]])
    assert dola.chosen(final, early, released=False) == 0
    assert dola.chosen(final, early, released=True) == 1


def test_dola_rows_share_a_layer():
    final = np.array([logs(0.5, 0.5), logs(0.5, 0.5)])
    early = np.array([[logs(0.4, 0.6), logs(0.4, 0.6)], [logs(0.5, 0.5), logs(0.01, 0.99)]])
    assert dola.chosen(final[:1], early[:, :1], released=False) == 0
    assert dola.chosen(final, early, released=False) == 1


def test_dola_contrast_and_candidates():
    close(dola.contrast(logs(0.6, 0.36, 0.04), logs(0.2, 0.4, 0.4)), [np.log(3), np.log(0.9), NO])
    assert dola.candidates(32, "low", tied=False) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert dola.candidates(32, "high", tied=False) == [16, 18, 20, 22, 24, 26, 28, 30]
    assert dola.candidates(80, "low", tied=True) == [2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert dola.candidates(80, "high", tied=False) == list(range(60, 80, 2))
    assert dola.candidates(4, "low", tied=True) == [2]
    assert dola.candidates(2, "low", tied=True) == [1]


# SPIN


def test_spin_keeps_the_whole_part_of_the_heads():
    close(spin.factors(np.array([3.0, 1.0, 2.0]), 0.95, 0.08), [1, 0.08, 1])
    close(spin.factors(np.array([1.0, 1.0]), 0.5, 0.0), [1, 0])
    assert (spin.factors(np.arange(32.0), 0.95, 0) == 0).sum() == 2


def test_spin_scores_and_attention_rank_differently():
    """Head 0 has the larger scores, head 1 the larger attention; the last query of two."""
    scores = np.array([[[0.0, NO, NO], [4.0, 0.0, 9.0]], [[0.0, NO, NO], [1.0, 1.0, 1.0]]])
    image = np.array([True, True, False])
    close(spin.released(scores, image, 0.5, 0.1), [[1, 1], [1, 0.1]])
    close(spin.paper(scores, image, np.array([False, True]), 0.5, 0.1), [[1, 0.1], [1, 1]])
    close(spin.paper(scores, image, np.array([True, True]), 0.5, 0.1), [[1, 0.1], [0.1, 1]])


# VASparse


def test_vasparse_importance_in_four_readings():
    query, keys = np.array([2.0, 0.0, 0.0, 0.0]), np.array([[-3.0, 1, 1, 1], [2, 0, 0, 0]])
    close(vasparse.importance(query, keys, "logits"), [36, 16])
    close(vasparse.importance(query, keys, "scaled"), [9, 4])
    p = 1 / (1 + np.exp(5))
    close(vasparse.importance(query, keys, "probs"), [p, 1 - p])
    close(vasparse.importance(query, keys, "probs_squared"), [p**2, (1 - p) ** 2])


def test_vasparse_saliency_and_delta():
    paid = logs(1, 3)
    close(vasparse.saliency(paid), [0.25, 0.75])
    query, keys = np.array([1.0]), np.array([[2.0], [1.0]])
    close(vasparse.delta(query, keys, paid, 4.0, "logits"), [4 + 1, 1 + 3])
    close(vasparse.delta(query, keys, paid, 6.0, "logits"), [4 + 1.5, 1 + 4.5])


def test_vasparse_keeps_the_best_in_scope():
    values = np.array([9.0, 1.0, 2.0, 2.0, 0.0])
    scope = np.array([False, True, True, True, True])
    assert vasparse.kept(values, scope, 0.25).tolist() == [True, False, True, False, False]
    assert vasparse.kept(values, scope, 0.6).tolist() == [True, True, True, True, False]
    assert vasparse.kept(np.arange(10.0), np.ones(10, dtype=bool), 0.3).sum() == 3


def test_vasparse_selection_minimises_theorem_one():
    """Over all masks of three keys of five, the best by delta lose least."""
    rng = np.random.default_rng(0)
    y, p = rng.normal(size=5), rng.dirichlet(np.ones(5))
    values = y**2 + 0.1 * p
    stays = vasparse.kept(values, np.ones(5, dtype=bool), 0.6)
    losses = {}
    for code in range(32):
        mask = np.array([code >> i & 1 for i in range(5)], dtype=bool)
        if mask.sum() == 3:
            losses[tuple(mask)] = ((y - mask * y) ** 2 - 0.1 * p * mask).sum()
    assert min(losses, key=lambda mask: losses[mask]) == tuple(stays)


def test_vasparse_released_selection_ignores_a_constant_visual_term():
    attention = np.array([[[0.4, 0.1, 0.3, 0.2], [0.1, 0.4, 0.3, 0.2]], [[0.4, 0.1, 0.3, 0.2], [0.3, 0.1, 0.3, 0.3]]])
    assert vasparse.released_kept(attention).tolist() == [True, False, True, True]
    assert vasparse.released_kept(attention, 1.0, 0.0).tolist() == [True, False, True, True]
    assert vasparse.released_kept(attention, np.array([0.0, 1, 1, 1]), 1.0).tolist() == [False, True, True, True]
    assert vasparse.released_kept(attention[:, :, :1]).tolist() == [False]


def test_vasparse_released_merging():
    tokens = np.arange(40.0)[:, None]
    merged = vasparse.released_merge(tokens)
    assert merged[:3, 0].tolist() == [1.0, 3.0, 4.0]  # int(0.1 x 40) is 3: (1 - 0.9) x 40 lies just below 4
    assert vasparse.released_merge(tokens[:16]).tolist() == tokens[:16].tolist()
    assert vasparse.released_merge(tokens[:5]).tolist() == tokens[:5].tolist()


def test_vasparse_contrasts():
    theta, phi = np.array([1.0, 0.0, -9.0]), np.array([10.0, 0.0, 0.0])
    close(vasparse.contrast(theta, phi), [1.1 - 1.0, 0.0, NO])
    close(vasparse.released_contrast(theta, phi), [0.0, 0.0, -9.0])


def test_vasparse_sink_penalty():
    """Row 1 sees key 0 with received 1 + 1/2 and itself with 1/2, so w is softmax of (1.5, 0.5)."""
    w = np.e / (1 + np.e)
    scores = np.array([[2.0, NO], [1.0, 1.0]])
    close(vasparse.penalised(scores, 0.1), [[1.1 * 2 - 0.1 * 2, NO], [1.1 - 0.1 * w, 1.1 - 0.1 * (1 - w)]])
    close(vasparse.penalised(scores, 0.0), scores)


# Sparse attention


def test_fastv_ranks_by_the_last_query_averaged_over_heads():
    attention = np.zeros((2, 2, 5))
    attention[:, 0] = [0.0, 0.9, 0.0, 0.0, 0.1]
    attention[0, 1], attention[1, 1] = [0.4, 0.3, 0.1, 0.1, 0.1], [0.4, 0.0, 0.1, 0.3, 0.2]
    image = np.array([1, 2, 3])
    assert fastv.kept(attention, image, 1).tolist() == [True, False, False, True, True]
    assert fastv.kept(attention, image, 2).tolist() == [True, True, False, True, True]
    assert [fastv.number_kept(n, 0.5) for n in (576, 3, 5)] == [288, 2, 2]


def test_fastv_may_choose_again():
    attention = np.tri(4)[None] * np.array([[1, 9, 9, 9], [1, 9, 9, 9], [2, 1, 9, 9], [1, 2, 9, 9]])
    image = np.array([0, 1])
    once = fastv.seen(attention, image, 1, prompt=3, again=False)
    again = fastv.seen(attention, image, 1, prompt=3, again=True)
    assert [np.flatnonzero(row).tolist() for row in once] == [[0], [0], [0, 2], [0, 2, 3]]
    assert again[:3].tolist() == once[:3].tolist()
    assert np.flatnonzero(again[3]).tolist() == [1, 2, 3]


def test_streaming_llm_window_leaves_out_the_query():
    assert streaming_llm.kept(6, 2, 3) == [0, 1, 3, 4, 5]
    assert streaming_llm.kept(5, 2, 3) == [0, 1, 2, 3, 4]
    assert streaming_llm.positions(6, 2, 3) == ([0, 1, 2, 3, 4], 5)
    seen = streaming_llm.seen(5, 2, 1, 1)
    assert np.flatnonzero(seen[4]).tolist() == [0, 3, 4]
    assert np.flatnonzero(seen[2]).tolist() == [0, 1, 2]


def test_h2o_keeps_what_received_most():
    """Every query scores key 1 highest; key 0, visible to all of the prompt, comes next."""
    scores = np.tile([0.0, 2.0, 0.0, 0.0, 0.0, 0.0], (6, 1))
    seen = h2o.dropped(scores, 3, heavy=1, recent=1)
    assert [np.flatnonzero(row).tolist() for row in seen] == [[0], [0, 1], [0, 1, 2], [1, 2, 3], [1, 3, 4], [1, 4, 5]]


def test_h2o_first_key_wins_under_uniform_attention():
    seen = h2o.dropped(np.zeros((4, 4)), 3, heavy=1, recent=1)
    assert np.flatnonzero(seen[3]).tolist() == [0, 2, 3]


def test_h2o_mask_and_cache_agree():
    rng = np.random.default_rng(1)
    for _ in range(20):
        scores = rng.normal(size=(24, 24)) * 3
        assert (h2o.masked(scores, 10, 0.2, 0.3) == h2o.dropped(scores, 10, 2, 3)).all()
    assert (h2o.masked(np.zeros((9, 9)), 5, 0.4, 0.0) == np.tri(9)).all()


def test_h2o_evicted_keys_stay_away():
    scores = np.random.default_rng(2).normal(size=(30, 30)) * 3
    seen = h2o.dropped(scores, 8, 3, 2)[8:]
    assert (seen.sum(-1) == 6).all()
    for key in range(8):
        assert (np.diff(seen[:, key].astype(int)) <= 0).all()


def test_snapkv_pooling_counts_zeros_beyond_the_ends():
    votes = np.array([3.0, 0.0, 0.0, 6.0])
    close(snapkv.pooled(votes, 3, "average"), [1, 1, 2, 2])
    close(snapkv.pooled(votes, 3, "max"), [3, 3, 6, 6])


def test_snapkv_keeps_the_window_and_the_voted_prefix():
    scores = np.zeros((6, 6))
    scores[4:, 2] = 5.0
    scores[:4, 0] = 99.0  # queries outside the window have no vote
    assert snapkv.kept(scores, window=2, capacity=3, kernel=1).tolist() == [2, 4, 5]
    assert snapkv.kept(scores, window=2, capacity=5, kernel=3, pooling="max").tolist() == [1, 2, 3, 4, 5]
    assert snapkv.kept(scores, window=2, capacity=7).tolist() == [0, 1, 2, 3, 4, 5]
    assert len(snapkv.kept(scores, window=2, capacity=6)) == 6


# AvisC and DeCo


def test_avisc_takes_the_fewest_layers():
    looks = np.array([0.2, 0.5, 0.1])[:, None, None] * np.ones((3, 2, 1))
    assert avisc.layers(looks, 0.5).tolist() == [1]
    assert avisc.layers(looks, 0.7).tolist() == [1, 0]
    assert avisc.layers(looks, 0.99).tolist() == [1, 0, 2]


def test_avisc_blind_tokens_lie_a_sample_deviation_above_the_mean():
    attention = np.array([[[0.0, 0.0, 0.3]], [[0.01, 0.0, 0.0]]])  # mean 0.1, deviation 0.1732: 0.3 is blind
    assert avisc.blind(attention).tolist() == [False, False, True]
    assert avisc.blind(attention, deviations=1.16).tolist() == [False, False, False]
    assert avisc.blind(attention, share=0.99).tolist() == [False, False, True]


def test_avisc_contrast():
    close(avisc.contrast(np.array([1.0, 0.0, -2.0]), np.array([0.0, 1.0, 0.0])), [3.5, -2.5, NO])


def test_deco_candidates_include_the_token_that_crosses():
    theta = logs(0.5, 0.1, 0.3, 0.1)
    assert deco.candidates(theta, 0.6).tolist() == [0, 2]
    assert deco.candidates(theta, 0.4).tolist() == [0]
    assert deco.candidates(theta, 0.99, top_k=2).tolist() == [0, 2]


def test_deco_adds_the_early_layer_that_is_surest_of_a_candidate():
    theta = logs(0.6, 0.3, 0.1)
    early = np.array([logs(0.5, 0.2, 0.3), logs(0.1, 0.7, 0.2), logs(0.04, 0.01, 0.95)])
    scores = deco.corrected(theta, early, alpha=0.5, top_p=0.8)
    close(scores, [np.log(0.6) + 0.35 * np.log(0.1), np.log(0.3) + 0.35 * np.log(0.7), NO])
