"""What one hostile customer changes for others through a belief: recall, success and ten best, before and after.

python scripts/experiments/belief_attack.py --data FOLDER [--data.qrels NAME] --out DIR [--rounds 10000]
    [--events 10000] [--seeds 3]

A belief with the evidence of a service learns from honest customers on a stream; then one attacks in each of the ways
that ltrr/simulation/belief_attack.py describes (demote, promote, views). Writes DIR/results.json and DIR/table.md.
"""

from __future__ import annotations

import numpy as np
from tqdm import tqdm

from ltrr.cli.arguments import arguments, main
from ltrr.evaluation.tables import markdown, write_experiment
from ltrr.policies.belief import Belief
from ltrr.policies.evidence import CorpusEvidence
from ltrr.simulation.belief_attack import ATTACKS, damage_to_belief
from ltrr.system.streams import fitted_arguments, section_with, stream_world, with_features
from ltrr.system.system import open_systems

_MEAN = 5.0  # candidates a query


def run() -> None:
    flags, overrides = arguments(
        __doc__,
        "configs/stream.yaml",
        "runs/attack-belief",
        lambda parser: (
            parser.add_argument("--rounds", type=int, default=10_000, help="of honest customers"),
            parser.add_argument("--events", type=int, default=10_000, help="pages of the attacker"),
            parser.add_argument("--seeds", type=int, default=3),
        ),
    )
    (system,) = open_systems(flags.config, overrides)
    world = stream_world(system)
    section = section_with(system, system.settings.stream.systems.get("belief") or {}, _MEAN)
    section |= fitted_arguments(system, section, world.of("train"))

    def make(seed: int) -> Belief:
        belief = system.policies.unpriced(section | {"evidence": CorpusEvidence(system.dataset.corpus)}, seed)
        assert isinstance(belief, Belief)
        return belief

    pools = with_features(system, make(0), world.pools)
    attacks: dict[str, dict[str, list[float]]] = {}
    for kind in ATTACKS:
        each = [
            damage_to_belief(lambda s=seed: make(s), pools, kind, rounds=flags.rounds, events=flags.events, seed=seed)
            for seed in tqdm(range(flags.seeds), kind, unit="seed")
        ]
        attacks[kind] = {measure: [one[measure] for one in each] for measure in each[0]}
    header = ["attack", *(name.replace("_", " ") for name in attacks["demote"])]
    rows = [[kind, *(f"{np.mean(values):.4f}" for values in of.values())] for kind, of in attacks.items()]
    results = {"rounds": flags.rounds, "events": flags.events, "seeds": flags.seeds, "attacks": attacks}
    write_experiment(flags.out, results, markdown(header, rows))


if __name__ == "__main__":
    main(run)
