"""Arrays of served pages: for the estimate of examination, and for the history of each arm's success.

Knows the event store, impressions and rewards; does not know policies or features.
Legend: R impressions, K positions, A arms.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ltrr.feedback.clicks import PositionBased, fit_position_based
from ltrr.feedback.events import Action, Impression, Reward
from ltrr.types import Query

Acted = tuple[Impression, Sequence[Action]]
_LEAST = 0.01  # examination: a click at a position of a smaller one would weigh without bound


def click_log(
    batches: Iterable[Iterable[tuple[int, Impression, Sequence[Action]]]], num_positions: int
) -> tuple[np.ndarray, np.ndarray]:
    """(R, K) numbers of (query, entity), −1 = pad, and (R, K) bool, whether an action with a reward above 0 came.

    batches: of an event store (`EventStore.rounds`).
    """
    number: dict[tuple[str, str], int] = {}
    pairs, clicked, reward = [], [], Reward()
    for _, impression, actions in (one for batch in batches for one in batch):
        shown = impression.shown[:num_positions]
        pad = num_positions - len(shown)
        key = impression.normalised
        pairs.append([number.setdefault((key, entity), len(number)) for entity in shown] + [-1] * pad)
        worth = reward.of_entities(impression.time, actions)
        clicked.append([worth.get(entity, 0.0) > 0 for entity in shown] + [False] * pad)
    shape = (len(pairs), num_positions)
    return np.array(pairs, np.int64).reshape(shape), np.array(clicked, bool).reshape(shape)


def estimated_examination(pairs: np.ndarray, clicked: np.ndarray) -> PositionBased:
    """The position-based model of a click log, each position at least .01.

    Errors: ValueError where there are no clicks, or too few for the estimate to settle.
    """
    if not clicked.any():
        raise ValueError("examination: there are no clicks in this store yet; serve, and send POST /feedback")
    fit = fit_position_based(pairs, clicked)
    if not fit.converged:
        raise ValueError("examination: the estimate has not settled; more clicks are needed")
    return PositionBased(tuple(max(round(e, 4), _LEAST) for e in fit.model.examination))


def unusable(impression: Impression, arms: tuple[str, ...]) -> str:
    """The reason why an impression does not say which of these arms returned its documents; empty where it does."""
    if impression.arms != arms:
        return "of other arms"
    depths = (impression.executed or impression.drawn).depths
    if len(impression.ranks) != len(impression.shown) or len(depths) != len(arms):
        return "that do not say which arms returned what"
    return ""


def arm_credits(
    pages: Sequence[Acted], examination: np.ndarray
) -> tuple[list[Query], np.ndarray, np.ndarray, np.ndarray]:
    """R queries, which arms returned each document (R, K, A), its debiased clicks (R, K), and which arms ran (R, A).

    Clicks are NaN on pads. pages: of the same A arms, none `unusable`. examination: (K,), K that of the longest page.
    """
    reward, shape = Reward(), (len(pages), len(examination))
    returned, rewards = np.zeros((*shape, len(pages[0][0].arms)), bool), np.full(shape, np.nan)
    for row, (impression, actions) in enumerate(pages):
        worth, num = reward.of_entities(impression.time, actions), len(impression.shown)
        ranks = np.array(impression.ranks, np.float32).reshape(-1, returned.shape[2])  # None becomes NaN
        returned[row, :num] = ~np.isnan(ranks)
        rewards[row, :num] = [worth.get(entity, 0.0) > 0 for entity in impression.shown] / examination[:num]
    ran = np.array([(each.executed or each.drawn).depths for each, _ in pages]) > 0
    return [Query(each.id, each.query, each.context) for each, _ in pages], returned, rewards, ran
