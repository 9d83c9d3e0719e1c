"""What arms brought before: equal to sums made by hand, told apart by query, never of the future, and bounded."""

from __future__ import annotations

import numpy as np
import pytest

from ltrr.policies.history import History
from ltrr.types import Query

ARMS = ("a", "b", "c")
NUM, SHOWN = 40, 5


def vectors(queries) -> np.ndarray:
    """Near each other where texts begin with the same letter; zeros for the text "?"."""
    out = np.zeros((len(queries), 27), np.float32)
    for row, query in zip(out, queries, strict=True):
        if query.text != "?":
            row[ord(query.text[0]) - ord("a")], row[26] = 1.0, 0.2 * (len(query.text) % 4)
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9)


def history(**options) -> History:
    return History({arm: arm for arm in ARMS}, str.lower, vectors, **options)


@pytest.fixture
def pages():
    """Rounds of one query each: returned, rewards with places where nothing was shown, and arms that ran."""
    rng = np.random.default_rng(0)
    texts = [f"{'xyz'[rng.integers(3)]}{'o' * rng.integers(4)}" for _ in range(NUM)]
    ran = rng.random((NUM, 3)) < 0.8
    returned = (rng.random((NUM, SHOWN, 3)) < 0.6) & ran[:, None]
    rewards = (rng.random((NUM, SHOWN)) < 0.3) * np.arange(1.0, SHOWN + 1)
    rewards[rng.random((NUM, SHOWN)) < 0.1] = np.nan
    return [Query(str(i), text) for i, text in enumerate(texts)], returned, rewards, ran


def by_hand(query: Query, pages, until: int, strength: float) -> dict[str, float]:
    """The columns of one query from the rounds before `until`, without matrices."""
    queries, returned, rewards, ran = pages
    own, near, usual = np.zeros((3, 3)), np.zeros((3, 3)), np.zeros((2, 3))
    for i in range(until):
        same = queries[i].text == query.text
        alike = float((vectors([query]) @ vectors([queries[i]]).T)[0, 0])
        for a in range(3):
            credit = results = 0.0
            for j in range(SHOWN):
                if returned[i, j, a] and not np.isnan(rewards[i, j]):
                    results += 1
                    credit += rewards[i, j] / returned[i, j].sum()
            told = np.array([credit, results, ran[i, a]])
            usual[:, a] += told[[0, 2]]
            if same:
                own[:, a] += told
            elif alike >= 0.5:
                near[:, a] += alike * told
    mean, out = usual[0] / np.maximum(usual[1], 1e-9), {}
    for name, (credit, results, num) in (("own", own), ("near", near)):
        out[f"{name}_pages"] = np.log1p(num.max())
        for a, arm in enumerate(ARMS):
            success = (credit[a] + strength * mean[a]) / (num[a] + strength)
            out[f"{name}_{arm}_success"] = success if num[a] else np.nan
            out[f"{name}_{arm}_results"] = results[a] / num[a] if num[a] else np.nan
    return out


def test_features_are_of_the_past_alone_and_equal_sums_by_hand(pages):
    made = history()
    names = [feature.name for feature in made.group.columns]
    assert all(feature.unit for feature in made.group.columns)
    for i, query in enumerate(pages[0]):
        found = made.features([query])  # before its own feedback
        assert found.shape == (1, len(names))
        expected = by_hand(query, pages, i, 2.0)
        np.testing.assert_allclose(found[0], [expected[name] for name in names], rtol=1e-5)
        made.update([query], *(part[i : i + 1] for part in pages[1:]))
    known = np.array([by_hand(query, pages, NUM, 2.0)["own_pages"] for query in pages[0]])
    np.testing.assert_allclose(made.features(pages[0])[:, 0], known, rtol=1e-5)


def test_nothing_is_known_at_first_nor_of_what_is_like_nothing(pages):
    made = history()
    first = made.features(pages[0])
    assert (first[:, [0, 7]] == 0).all()
    assert np.isnan(np.delete(first, [0, 7], axis=1)).all()
    made.update(*pages)
    stranger = made.features([Query("s", "q"), Query("s", "?")])
    assert np.isnan(np.delete(stranger, [0, 7], axis=1)).all()
    assert np.isnan(made.features([Query("s", "xxxxxxxxx")])[0, 1])  # never asked, but like others
    assert made.features([Query("s", "xxxxxxxxx")])[0, 8] >= 0


def test_batches_and_their_order_change_nothing(pages):
    whole, parts = history(), history()
    whole.update(*pages)
    for rows in np.array_split(np.random.default_rng(1).permutation(NUM), 7):
        parts.update([pages[0][i] for i in rows], *(part[rows] for part in pages[1:]))
    np.testing.assert_allclose(parts.features(pages[0]), whole.features(pages[0]), rtol=1e-5)


def test_one_page_moves_success_a_little_and_many_much():
    made = history()
    returned = np.zeros((1, 1, 3), bool)
    returned[0, 0, 0] = True
    for _ in range(100):
        made.update([Query("n", "nn")], returned, np.zeros((1, 1)))
    means = []
    for num in (1, 30):
        for _ in range(num):
            made.update([Query("h", "hh")], returned, np.ones((1, 1)))
        means.append(made.features([Query("h", "HH")])[0, 1])  # the key makes case equal
    assert 0.25 < means[0] < 0.5
    assert 0.9 < means[1] < 1.0


def test_no_more_is_remembered_than_asked_and_the_latest_are(tmp_path):
    made = history(most=3)
    ones = np.ones((1, 1, 3), bool), np.ones((1, 1))
    for text in ("aa", "bb", "cc", "aa", "dd"):  # bb came back least recently
        made.update([Query(text, text)], *ones)
    for text, times in (("aa", 2), ("bb", 0), ("cc", 1), ("dd", 1)):
        assert made.features([Query(text, text)])[0, 0] == pytest.approx(np.log1p(times))
    made.save(tmp_path / "history.npz")
    again = history(most=3)
    again.load(tmp_path / "history.npz")
    for one in (made, again):
        one.update([Query("ee", "ee")], *ones)  # in place of cc
    asked = [Query(text, text) for text in ("aa", "bb", "cc", "dd", "ee")]
    np.testing.assert_allclose(again.features(asked), made.features(asked))
    assert again.features(asked)[:, 0].tolist() == pytest.approx(np.log1p([2, 0, 0, 1, 1]).tolist())


def test_what_is_saved_goes_on(pages, tmp_path):
    made = history()
    made.update(*pages)
    made.save(tmp_path / "history.npz")
    again = history()
    again.load(tmp_path / "history.npz")
    for one in (made, again):
        one.update([part[0] for part in pages[:1]], *(part[:1] for part in pages[1:]))
    np.testing.assert_allclose(again.features(pages[0]), made.features(pages[0]))
    with pytest.raises(ValueError, match="history of the arms a, b, c, not a, b"):
        History({arm: arm for arm in ARMS[:2]}, str.lower, vectors).load(tmp_path / "history.npz")


def test_an_arm_that_never_ran_there_is_told_what_its_kind_brought() -> None:
    history = History({"a": "lexical", "b": "dense", "c": "lexical"}, str.lower, vectors)
    returned = np.zeros((1, SHOWN, 3), bool)
    returned[0, :2, 0], returned[0, 2, 1] = True, True
    rewards, ran = np.array([[1.0, 0.0, 0.0, 0.0, 0.0]]), np.array([[True, True, False]])
    history.update([Query("1", "xo")], returned, rewards, ran)
    own = history.features([Query("1", "xo")])[0, 1:7].reshape(2, 3)  # success, results
    np.testing.assert_allclose(own[:, 2], own[:, 0])
    assert own[0, 0] > own[0, 1]
    assert np.isnan(history.features([Query("2", "yo")])[0, 1:7]).all()
