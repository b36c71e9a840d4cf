"""OPERA: the penalty by hand, beam search as its special case, and the way back."""

from typing import Any

import pytest
import torch

from interp.interventions import OPERA, parse_method


@pytest.mark.parametrize("options", [{"max_new_tokens": 60}, {"max_new_tokens": 12, "min_new_tokens": 12}])
def test_without_penalty_and_returns_it_is_beam_search(options, model, inputs):
    for beams in (1, 3):
        expected = model.generate(inputs, num_beams=beams, **options).texts
        with OPERA(variant="vocabulary", num_beams=beams, candidates=2 * beams, alpha=0.0, rollbacks=0)(model):
            assert model.generate(inputs, **options).texts == expected


@pytest.mark.parametrize("variant", ["released", "paper", "vocabulary"])
def test_the_penalty_changes_the_text_and_rows_equal_each_alone(variant, model, inputs):
    plain = model.generate(inputs, num_beams=3, max_new_tokens=20).texts
    with OPERA(variant=variant, num_beams=3, candidates=3, alpha=5.0)(model):
        together = model.generate(inputs, max_new_tokens=20)
        assert together.texts != plain
        assert together.cache_bytes > 0
        for row in range(4):
            one = model.inputs([inputs.pictures[row]], inputs.texts[row], chat=False)
            assert model.generate(one, max_new_tokens=20).texts == [together.texts[row]]


def test_the_way_back_takes_another_token(model, inputs):
    """Threshold 1: the first token is a column that fires at once, so the second token is taken anew."""
    settings: Any = {"variant": "paper", "num_beams": 1, "candidates": 3, "alpha": 0.0, "recent": 1, "threshold": 1}
    with OPERA(**settings, rollbacks=0)(model):
        plain = model.generate(inputs, max_new_tokens=8).tokens
    with OPERA(**settings, rollbacks=1)(model):
        found = model.generate(inputs, max_new_tokens=8).tokens
    assert all(len(t) for t in found)
    assert not all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


def test_what_does_not_fit_is_refused(model, inputs):
    with pytest.raises(ValueError, match="at least as many candidates as beams"):
        OPERA(num_beams=5, candidates=3)
    with pytest.raises(ValueError, match="sigma of OPERA is a number above 0"):
        OPERA(sigma=0.0)
    with OPERA()(model), pytest.raises(ValueError, match="neither num_beams nor do_sample"):
        model.generate(inputs, num_beams=2, max_new_tokens=2)
    with OPERA()(model), parse_method("vcd")(model), pytest.raises(ValueError, match="cannot be combined"):
        model.generate(inputs, max_new_tokens=2)
