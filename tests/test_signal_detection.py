"""d' and criterion, by hand."""

import numpy as np
import pytest
from scipy.stats import norm

from interp.metrics.signal_detection import sensitivity


def test_d_prime_and_criterion_by_hand():
    found = sensitivity(np.array([83.5, 99.0, 15.5, 99.0]))  # 84 and 16 of a hundred, with the correction
    assert found["d_prime"] == pytest.approx(2 * norm.ppf(0.84))
    assert found["criterion"] == pytest.approx(0, abs=1e-12)


def test_naming_less_moves_the_criterion_and_seeing_better_moves_d_prime():
    z = np.array([[1.0, -1.0], [0.5, -1.5], [1.5, -1.5]])  # as it is, more sparing, sees better
    rates = norm.cdf(z)
    counts = np.stack([1000 * rates[:, 0], np.full(3, 1000), 1000 * rates[:, 1], np.full(3, 1000)], 1)
    found = sensitivity(counts)
    np.testing.assert_allclose(found["d_prime"], [2, 2, 3], atol=0.01)
    np.testing.assert_allclose(found["criterion"], [0, 0.5, 0], atol=0.01)


def test_rates_of_none_and_all_are_finite_and_no_objects_are_unknown():
    all_or_none = sensitivity(np.array([10.0, 10.0, 0.0, 10.0]))
    assert all_or_none["d_prime"] == pytest.approx(2 * norm.ppf(10.5 / 11))
    assert np.isnan(sensitivity(np.array([0.0, 0.0, 1.0, 10.0]))["d_prime"])
    assert np.isnan(sensitivity(np.array([1.0, 5.0, 0.0, 0.0]))["criterion"])
