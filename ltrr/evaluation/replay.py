"""Turns a log and a policy into the arrays that estimators need: how likely the policy would have decided as logged.

Knows impressions, rewards and the protocols of policies; does not know databases, configs or the estimators' formulas.
Depths and cut are compared; a candidate that a policy explores at a reserved place is not.
Legend: R rounds, A arms, D features of a model of rewards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ltrr.evaluation.estimate import Logged, cross_fitted
from ltrr.feedback.events import Action, Impression, Reward
from ltrr.policies.features import Standard
from ltrr.protocols import AfterRetrieval, Featured, Policy, Replay, Replayable, offers
from ltrr.types import Decision, Query

_PRECISION = 100.0  # rounds' worth of the mean reward, in the model of rewards
_AFTER = ("cut ", "depth ")  # ids of policies that draw the cut after retrieval; "depth" in version 0.1


@dataclass(frozen=True)
class Log:
    """R rounds with a decision over the same arms."""

    impressions: Sequence[Impression]
    reward: np.ndarray  # (R,)

    @classmethod
    def read(
        cls, batches: Iterable[Iterable[tuple[int, Impression, Sequence[Action]]]], logger: str | None = None
    ) -> tuple[Log, int]:
        """The log, and how many impressions were left out because nothing was decided for them.

        batches: of an event store (`EventStore.rounds`). logger: id of the policy whose rounds are read; None = of all.
        Errors: ValueError where no round has arms, or rounds have different arms.
        """
        worth, impressions, rewards, without = Reward(), [], [], 0
        for _, seen, actions in (one for batch in batches for one in batch):
            without += not seen.drawn.depths
            if seen.drawn.depths and logger in (None, seen.policy):
                impressions.append(seen)
                rewards.append(worth.of(seen.time, actions))
        if (num := len({seen.arms for seen in impressions})) != 1:
            problem = f"rounds have {num} different sets of arms" if num else "there are no rounds with arms"
            raise ValueError(f"log: {problem}; name the policy that logged them with --logger")
        return cls(impressions, np.array(rewards)), without

    @property
    def arms(self) -> tuple[str, ...]:
        """(A,) names."""
        return self.impressions[0].arms

    @property
    def depths(self) -> dict[str, int]:
        """Arm -> the most candidates that it drew in any round."""
        return dict(zip(self.arms, self.decision.depths.max(axis=0).tolist(), strict=True))

    @property
    def policies(self) -> np.ndarray:
        """(R,) ids of the policies that logged the rounds."""
        return np.array([seen.policy for seen in self.impressions])

    @cached_property
    def executed(self) -> np.ndarray:
        """(R,) bool, whether the decision that was drawn also ran."""
        return np.array([seen.executed in (None, seen.drawn) for seen in self.impressions])

    @cached_property
    def decision(self) -> Decision:
        """R logged decisions; marginals are NaN where none were logged."""
        drawn, unknown = [seen.drawn for seen in self.impressions], (np.nan,) * (len(self.arms) + 1)
        return Decision(
            depths=np.array([one.depths for one in drawn], np.int32),
            cut=np.array([one.cut for one in drawn], np.int32),
            propensity=np.array([seen.propensity for seen in self.impressions]),
            marginals=np.array([seen.marginals or unknown for seen in self.impressions], float),
        )

    @property
    def queries(self) -> list[Query]:
        """R queries in their contexts; the id of a query is that of its impression."""
        return [Query(seen.id, seen.query, seen.context) for seen in self.impressions]

    @property
    def features(self) -> list[tuple[float, ...]]:
        """R rows of features, each as long as it was logged."""
        return [seen.features for seen in self.impressions]


class Replayed(NamedTuple):
    """A log as estimators read it, with a policy as the target."""

    logged: Logged  # of the rounds that tell about the policy
    used: np.ndarray  # (all rounds,) bool; False = a decision or features that the policy cannot have had
    cut: float  # candidates that the policy would rank on average in the rounds that are used


def replay(log: Log, policy: Policy) -> Replayed:
    """How likely a policy would have decided as logged.

    A policy that offers `Replayable` says so itself, and describes rounds to the model of rewards (`cross_fitted`). Any
    other is asked to decide again: where it decides without chance and before retrieval, the probability is 1 where
    depths and cut are the logged ones, else 0. Only then are parts of decisions compared, for `pi`: not where the
    logger drew the cut for the arms that it had drawn, because the cut's propensity is no marginal there.

    Errors: ValueError for a policy that does not offer `Replayable` and draws, or decides after retrieval; and where no
    round tells about the policy.
    """
    marginals = target_marginals = None
    if (replayable := offers(policy, Replayable)) is not None:
        replayed = replayable.replay(log.queries, log.features, log.decision)
    else:
        decision = _decided(log, policy)
        same = np.concatenate([decision.depths == log.decision.depths, (decision.cut == log.decision.cut)[:, None]], 1)
        every = np.ones(len(same), bool)
        replayed = Replay(same.min(axis=1).astype(float), None, log.decision.propensity, every, decision.cut)
        if np.isfinite(log.decision.marginals).all() and not _cut_given_arms(log):
            marginals, target_marginals = log.decision.marginals, same.astype(float)  # (R, A + 1)
    used = replayed.known & np.isfinite(replayed.propensity)
    if not used.any():
        raise ValueError("policy: no round of the log is of its arms, depths and features; check the policy's model")
    logged = Logged(
        reward=log.reward[used],
        propensity=replayed.propensity[used],
        target=replayed.target[used],
        action=None if replayed.action is None else replayed.action[used],
        marginals=marginals,
        target_marginals=target_marginals,
        executed=log.executed[used],
        groups=np.array([f"s{seen.session}" if seen.session else f"i{seen.id}" for seen in log.impressions])[used],
    )
    if replayed.contexts is not None and logged.target.ndim == 2:
        contexts = replayed.contexts[used]  # (R, D)
        logged = cross_fitted(logged, Standard.of(contexts)(contexts).astype(float), precision=_PRECISION)
    return Replayed(logged, used, float(replayed.cut[used].mean()))


def _decided(log: Log, policy: Policy) -> Decision:
    """What a policy without chance decides for the logged queries."""
    queries, featured = log.queries, offers(policy, Featured)
    features = featured.features(queries) if featured is not None else np.zeros((len(queries), 0), np.float32)
    decision = policy.decide(queries, features)
    if offers(policy, AfterRetrieval) or (decision.propensity < 1).any():
        raise ValueError(
            f"policy: {type(policy).__name__} draws its decisions or decides after retrieval; to estimate its value it "
            "must say how likely a logged decision is (`Replayable` in ltrr/protocols.py)"
        )
    return decision


def _cut_given_arms(log: Log) -> bool:
    """Whether arms were drawn at random and the cut after them, in some round.

    Prices in the log say so, of candidates for the cut; ids say so of logs without prices.
    """
    return any(
        min((1.0, *seen.marginals[:-1])) < 1
        and (seen.policy.startswith(_AFTER) or any(name.partition(" ")[0] == "candidates" for name in seen.prices))
        for seen in log.impressions
    )
