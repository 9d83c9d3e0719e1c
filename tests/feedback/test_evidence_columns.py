"""Numbers of keys are a dict's, at any size and in any order."""

from __future__ import annotations

import numpy as np
import pytest

from ltrr.feedback.evidence.columns import Column, Numbers


def test_a_column_grows_with_zeros_and_keeps_what_it_had():
    column = Column(np.float64, 2)
    column.grow(3)
    column.values[:] = 1.0
    column.grow(1000)
    assert column.values.shape == (1000, 2)
    assert column.values.sum() == 6.0


@pytest.mark.parametrize("spread", [1, 1 << 10, 1 << 32], ids=["dense", "strided", "high bits"])
def test_numbers_are_those_of_a_dict(spread):
    rng = np.random.default_rng(0)
    numbers, expected = Numbers(), {}
    assert (numbers.find(np.array([0, 5])) == -1).all()
    for size in (0, 1, 700, 5000, 20_000):  # the table is made anew on the way
        keys = rng.integers(0, 30_000, size) * spread
        found, new = numbers.add(keys)
        assert len({*keys[new].tolist()}) == len(new)
        assert {*keys[new].tolist()} == {*keys.tolist()} - expected.keys()
        for key, number in zip(keys.tolist(), found.tolist(), strict=True):
            assert expected.setdefault(key, number) == number
        assert sorted(expected.values()) == list(range(len(numbers)))
    keys = np.array([*expected])
    np.testing.assert_array_equal(numbers.find(keys), [*expected.values()])
    assert (numbers.find(keys + (1 << 50)) == -1).all()
