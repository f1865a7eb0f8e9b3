"""Quantiles by counting, against NumPy."""

import numpy as np

from analyses.read.quantiles import QUANTILES, HalfCounts


def test_quantiles_are_those_of_the_values_signs_and_zeros_and_all():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=997), [0.0, -0.0, 6e-8, -6e-8, 65504, -np.inf]]).astype(np.float16)
    group = rng.integers(0, 3, len(values))
    counted = HalfCounts(3)
    for half in (slice(0, 400), slice(400, None)):
        counted.add(values[half], group[half])
    for name, q in QUANTILES.items():
        assert counted.quantiles()[name] == np.quantile(values.astype(float), q, method="inverted_cdf")
        for m in range(3):
            of_group = values[group == m].astype(float)
            assert counted.quantiles(m)[name] == np.quantile(of_group, q, method="inverted_cdf")


def test_nothing_counted_has_no_quantile():
    assert np.isnan(list(HalfCounts().quantiles().values())).all()
