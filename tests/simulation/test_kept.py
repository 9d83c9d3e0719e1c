"""Arrays are computed once; outcomes of another world are refused."""

from __future__ import annotations

import numpy as np
import pytest

from ltrr.simulation.kept import check_world, kept


def test_what_is_kept_is_not_computed_again(tmp_path) -> None:
    calls = []

    def compute():
        calls.append(1)
        return {"x": np.arange(3)}

    for _ in range(2):
        np.testing.assert_array_equal(kept(tmp_path / "a" / "b.npz", compute)["x"], [0, 1, 2])
    assert len(calls) == 1


def test_another_world_is_refused_where_it_has_outcomes(tmp_path) -> None:
    check_world(tmp_path, ["arm"], [1.0])
    check_world(tmp_path, ["other"], [1.0])  # nothing is kept yet
    np.savez(tmp_path / "seed.npz", x=1)
    check_world(tmp_path, ["other"], [1.0])
    with pytest.raises(ValueError, match="--out"):
        check_world(tmp_path, ["arm"], [1.0])
