"""What was asked for, and how each figure is read off what reproduce.py's steps wrote.

`read` holds the results.json of every step by its name; docs/results.md compares.
"""

from __future__ import annotations

from collections.abc import Callable

_OVERLAPS = ("high", "middle", "low")  # of the logger and the target


def cell(table: str, system: str, measure: str) -> Callable[[dict], float]:
    """A figure of a table."""
    return lambda read: read[table][system][measure]


def gain(of: tuple[str, str], over: tuple[str, str], measure: str) -> Callable[[dict], float]:
    """How much better one (table, system) is than another."""
    return lambda read: read[of[0]][of[1]][measure] - read[over[0]][over[1]][measure]


def speed(case: str, figure: str = "value") -> Callable[[dict], float]:
    """A figure of a benchmark's case: its value, or its ratio to a peer's."""
    return lambda read: read["benchmarks"][case][figure]


def times_less(case: str) -> Callable[[dict], float]:
    """How many times a peer's time or memory is ours."""
    return lambda read: 1 / read["benchmarks"][case]["ratio"]


def used(step: str, group: str, rounds: str) -> Callable[[dict], float]:
    """R@10 of those of a group's queries that were used before."""
    return lambda read: read[step]["groups"][group]["rounds"][rounds]["used"]["R@10"]["mean"]


def logs_of(read: dict) -> list[dict]:
    """Rows of DR on simulated logs by overlap."""
    return [row for row in read["ope-simulated"]["rows"] if row["estimator"] == "dr" and row["world"] in _OVERLAPS]


def policy(step: str, figure: str, budget: int) -> Callable[[dict], float]:
    """Gap closed or cost saved of a learned policy."""
    return lambda read: read[step][figure][f"K={budget}"]["mean"]


def arms_off(read: dict, budget: int, step: str = "policy-arms") -> dict:
    """The row of a policy of arms whose price on dev saves 30 % of their cost."""
    return next(row for row in read[step]["K"][str(budget)]["rows"] if row["share"] == 0.7)


def simulated(step: str, group: str, rounds: str, measure: str) -> Callable[[dict], float]:
    """A figure of a simulation of memory."""
    return lambda read: read[step]["groups"][group]["rounds"][rounds][measure]["mean"]


def learned(step: str, group: str, rounds: str, measure: str = "R@10") -> Callable[[dict], float]:
    """How much better than without memory."""
    found, without = (simulated(step, group, r, measure) for r in (rounds, "without"))
    return lambda read: found(read) - without(read)


GOALS = [  # what, how to read it, the goal
    ("SciFact lexical nDCG@10", cell("scifact", "lexical", "nDCG@10"), ">=", 0.678),
    ("SciFact lexical R@100", cell("scifact", "lexical", "R@100"), ">=", 0.92),
    ("SciFact dense nDCG@10 (.645 ± .002)", cell("scifact", "dense", "nDCG@10"), "within .002 of", 0.645),
    ("SciFact RRF nDCG@10", cell("scifact", "rrf", "nDCG@10"), ">=", 0.712),
    ("SciFact convex nDCG@10", cell("scifact", "convex", "nDCG@10"), ">=", 0.725),
    ("MSRD lexical nDCG@10", cell("msrd", "lexical", "nDCG@10"), ">=", 0.83),
    ("MSRD lexical R@100", cell("msrd", "lexical", "R@100"), ">=", 0.975),
    ("MSRD convex R@10", cell("msrd", "convex", "R@10"), ">=", 0.925),
    ("MSRD convex R@100", cell("msrd", "convex", "R@100"), ">=", 0.99),
    ("MSRD person queries, structured R@10 − lexical R@10", 
     lambda r: r["people"]["structured"]["mean"] - r["people"]["lexical"]["mean"], ">=", 0.0),
    ("p of that difference (paired randomisation, Holm)", lambda r: r["people"]["structured"]["p"], "<=", 0.05),
    ("lexical, one query, median ms (MSRD)", speed("arms.latency: lexical, median"), "<=", 2),
    ("structured, one query, median ms (MSRD)", speed("arms.latency: structured, median"), "<=", 10),
    ("funnel, one query, times the sum of its arms (MSRD)",
     speed("funnel.overhead: funnel, median", "ratio"), "<=", 1.15),
    ("SciFact dense, trained, nDCG@10", cell("scifact-dense", "dense", "nDCG@10"), ">=", 0.76),
    ("SciFact dense, trained, R@100", cell("scifact-dense", "dense", "R@100"), ">=", 0.95),
    ("MSRD dense, trained − untrained, nDCG@10",
     gain(("msrd-dense", "dense"), ("msrd", "dense"), "nDCG@10"), ">=", 0.04),
    ("MSRD dense, trained − untrained, R@100", gain(("msrd-dense", "dense"), ("msrd", "dense"), "R@100"), ">=", 0.02),
    ("SciFact SPLADE, nDCG@10 (at most 200 terms a document)", cell("scifact-sparse", "sparse", "nDCG@10"), ">=", 0.69),
    ("MSRD SPLADE, nDCG@10 (BM25 of all fields: anchors)", cell("msrd-sparse", "sparse", "nDCG@10"), ">", 0.722),
    ("MSRD SPLADE − lexical (fields and popularity fitted on train), nDCG@10",
     gain(("msrd-sparse", "sparse"), ("msrd", "lexical"), "nDCG@10"), ">", 0),
    ("SciFact cross-encoder over RRF, interpolated, nDCG@10", cell("scifact-ranked", "ltrr", "nDCG@10"), ">=", 0.75),
    ("SciFact cross-encoder over RRF, alone, nDCG@10",
     cell("scifact-ranked", "ltrr_ranker_alone", "nDCG@10"), ">=", 0.75),
    ("MSRD cross-encoder over RRF, interpolated, nDCG@10", cell("msrd-ranked", "ltrr", "nDCG@10"), ">=", 0.87),
    ("MSRD cross-encoder over RRF, alone, nDCG@10", cell("msrd-ranked", "ltrr_ranker_alone", "nDCG@10"), ">=", 0.87),
    *(
        (f"SciFact lexical with {which} queries − without, {measure}",
         gain(("scifact-expanded", system), ("scifact-expanded", "lexical"), measure), ">=", 0.01)
        for which, system in (("generated", "expanded"), ("generated and filtered", "filtered"))
        for measure in ("nDCG@10", "R@100")
    ),
    ("training, times sentence-transformers' trainer",
     speed("training.bi_encoder: ours, no dropout", "ratio"), ">=", 1.2),
    ("SPLADE head, times faster (float32)", times_less("encoders.splade_head: float32 time, fused"), ">=", 2),
    ("SPLADE head, times less memory (float32)",
     times_less("encoders.splade_head: float32 memory, fused"), ">=", 8),
    ("click models: worst error of examination, position-based and cascade read as themselves",
     lambda r: max(max(v) for k, v in r["click_models"]["worst_error"].items() if k != "mismatch"), "<=", 0.02),
    ("memory, catalogue, idioms: R@10 after 5,000 rounds (0 without)",
     simulated("memory-catalogue", "idiom", "5,000", "R@10"), ">=", 0.8),
    ("memory, catalogue, idioms that were used before (twice by who asks, or by three): R@10 after 5,000 rounds",
     used("memory-catalogue", "idiom", "5,000"), ">=", 0.8),
    ("memory, catalogue, idioms: R@10 after 50,000 rounds",
     simulated("memory-catalogue", "idiom", "50,000", "R@10"), ">=", 0.8),
    ("memory, catalogue, idioms that were used before: R@10 after 50,000 rounds",
     used("memory-catalogue", "idiom", "50,000"), ">=", 0.8),
    ("memory, catalogue, idioms in words that train has not: R@10 after 50,000 rounds − without",
     learned("memory-catalogue", "idiom, not asked in train", "50,000"), ">", 0),
    ("memory, catalogue, all queries: nDCG@10 after 50,000 rounds − without",
     learned("memory-catalogue", "all", "50,000", "nDCG@10"), ">", 0),
    ("memory, MSRD recurring queries: R@10 after 100,000 rounds − without",
     learned("memory-msrd-random", "all", "100,000"), ">", 0),
    ("p of that difference", lambda r: r["memory-msrd-random"]["groups"]["all"]["rounds"]["100,000"]["R@10"]["p"],
     "<=", 0.05),
    ("memory, MSRD by group: R@10 after 100,000 rounds − without (little is expected)",
     learned("memory-msrd", "all", "100,000"), ">=", 0),
    *((f"attacker, {clicks} clicks: share of others' top tens that hold other entities",
       lambda r, step=step: max(x for a in r[step]["attacks"].values() for x in a["other_entities"]), "<=", 0)
      for clicks, step in (("10,000", "attack"), ("100", "attack-patient"))),
    *((f"policy, MSRD: gap to hindsight closed at a budget of {k} candidates, clicks, one pass",
       policy("policy-msrd", "gap_closed", k), ">=", goal) for k, goal in ((5, 0.35), (10, 0.28), (20, 0.2))),
    *((f"policy, MSRD: gap closed, ten passes, {k} candidates",
       policy("policy-msrd-ten", "gap_closed", k), ">=", goal) for k, goal in ((5, 0.45), (10, 0.38), (20, 0.3))),
    ("off-policy, simulated logs of 100,000 rounds: largest error of DR",
     lambda r: max(x["error"] for x in logs_of(r) if x["rounds"] == 100_000), "<=", 0.05),
    ("off-policy, simulated logs of 100,000 rounds: least coverage of DR's intervals",
     lambda r: min(x["coverage"] for x in logs_of(r) if x["rounds"] == 100_000), ">=", 0.9),
    *((f"policy, MSRD: candidates saved at the recall of a fixed {k}, one pass",
       policy("policy-msrd", "cost_saved", k), ">=", goal) for k, goal in ((5, 0.25), (10, 0.25), (20, 0.2))),
    *((f"policy, SciFact, five folds: lower end of the gap closed at {k} candidates, {passes}",
       lambda r, k=k, n=n: next(x for x in r["policy-scifact"]["all"] if (x["K"], x["passes"]) == (k, n))
       ["gap_closed"]["low"], ">", 0) for n, passes in ((1, "one pass"), (5, "five passes")) for k in (5, 10, 20)),
    *((f"policy, catalogue: gap closed at {k} candidates (clicks that tell everything: see its table)",
       policy("policy-catalogue", "gap_closed", k), ">=", 0.6) for k in (5, 10, 20)),
    *((f"policy, MSRD, features of other queries: gap closed at {k} candidates",
       policy("policy-msrd-shuffled", "gap_closed", k), "<=", 0.0) for k in (5, 10, 20)),
    *((f"arms off before retrieval, MSRD: recall of {k} candidates lost, priced to save 30 % of their cost",
       lambda r, k=k: arms_off(r, k)["policy"]["mean"], "<=", 0.003) for k in (5, 10, 20)),
    *((f"arms off before retrieval, MSRD: their cost saved on test ({k} candidates)",
       lambda r, k=k: 1 - arms_off(r, k)["cost"], ">=", 0.3)
      for k in (5, 10, 20)),
    *(("arms off before retrieval, MSRD: recall that static choices of that cost lose more, "
       f"lower end of the interval ({k} candidates)",
       lambda r, k=k: arms_off(r, k)["saved"]["low"], ">", 0.0) for k in (5, 10, 20)),
    *((f"arms off or less deep, MSRD: recall of {k} candidates lost, priced to save 30 % of their cost",
       lambda r, k=k: arms_off(r, k, "policy-depths")["policy"]["mean"], "<=", 0.003) for k in (5, 10, 20)),
    ("policy, MSRD: share of the candidates that is ranked", lambda r: r["policy-ranked"]["rows"][-1]["share"],
     "<=", 0.5),
    ("policy, MSRD: nDCG@10 after ranking those − after ranking all, lower end of the interval",
     lambda r: r["policy-ranked"]["rows"][-1]["policy"]["low"], ">=", -0.003),  # as much as arms may lose, above
    ("policy, MSRD: nDCG@10 after ranking those − after ranking as many of each query, lower end of the interval",
     lambda r: r["policy-ranked"]["rows"][-1]["gain"]["low"], ">", 0.0),
    ("a decision among 3,000, median ms", speed("policy.decide: alone, whole"), "<=", 1),
    ("decisions among 3,000 a second, batches, a worker on each of 2 cores",
     speed("policy.workers: 2 workers"), ">=", 20_000),
    ("an update of the heads by a page of 10, median ms", speed("policy.update: 10 shown"), "<=", 1),
    ("personal, Last.fm: R@100, times popular's (implicit ALS: see its table)",
     lambda r: r["personal"]["systems"]["personal, both: title and tags"]["times popular"][0], ">=", 2),
    ("fresh: new entities shown at least 3 times, share, with 10 % of pages − without",
     lambda r: r["fresh"]["differences"]["0.1"]["new_thrice"]["mean"], ">", 0),
    ("fresh: its cost in clicks a round", lambda r: r["fresh"]["differences"]["0.1"]["clicks"]["mean"], ">=", 0),
    *((f"events a second, {name}", speed(f"store.{name.lower()}: store"), ">=", 5000)
      for name in ("SQLite", "PostgreSQL")),
    *((f"of raw inserts, {name}", speed(f"store.{name.lower()}: store", "ratio"), ">=", 0.5)
      for name in ("SQLite", "PostgreSQL")),
    ("replay of a million events into memory, seconds", speed("memory.replay: replay"), "<=", 60),
    ("lookup in memory, median ms", speed("memory.replay: lookup, median"), "<=", 2),
    ("quickstart, seconds after the install", lambda r: r["quickstart cost"]["seconds"], "<=", 720),
    ("quickstart, peak memory, GiB", lambda r: r["quickstart cost"]["peak_gib"], "<=", 4),
]  # fmt: skip

HEADLINES = {  # those in README.md
    "SciFact lexical nDCG@10",
    "SciFact convex nDCG@10",
    "SciFact dense, trained, nDCG@10",
    "SciFact SPLADE, nDCG@10 (at most 200 terms a document)",
    "SciFact cross-encoder over RRF, interpolated, nDCG@10",
    "MSRD lexical nDCG@10",
    "MSRD convex R@100",
    "MSRD dense, trained − untrained, nDCG@10",
    "MSRD cross-encoder over RRF, interpolated, nDCG@10",
    "memory, MSRD recurring queries: R@10 after 100,000 rounds − without",
    "memory, catalogue, idioms: R@10 after 50,000 rounds",
    "attacker, 10,000 clicks: share of others' top tens that hold other entities",
    "policy, MSRD: gap to hindsight closed at a budget of 10 candidates, clicks, one pass",
    "policy, MSRD: candidates saved at the recall of a fixed 10, one pass",
    "policy, catalogue: gap closed at 10 candidates (clicks that tell everything: see its table)",
    "arms off before retrieval, MSRD: recall of 10 candidates lost, priced to save 30 % of their cost",
    "policy, MSRD: share of the candidates that is ranked",
    "policy, MSRD: nDCG@10 after ranking those − after ranking all, lower end of the interval",
    "policy, MSRD: nDCG@10 after ranking those − after ranking as many of each query, lower end of the interval",
    "personal, Last.fm: R@100, times popular's (implicit ALS: see its table)",
    "training, times sentence-transformers' trainer",
    "SPLADE head, times less memory (float32)",
    "events a second, SQLite",
    "quickstart, seconds after the install",
}


def met(value: float, sign: str, goal: float) -> bool:
    """Whether a figure is what was asked for."""
    if sign.startswith("within"):
        return abs(value - goal) <= float(sign.split()[1])
    return {">=": value >= goal, ">": value > goal, "<=": value <= goal}[sign]
