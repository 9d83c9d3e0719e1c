"""Compares systems that were run with several seeds, group of queries by group; does not know what the systems do.

Legend: S seeds, Q queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ltrr.evaluation.intervals import over_queries_and_seeds
from ltrr.evaluation.report import paired_randomisation

Values = Mapping[str, np.ndarray]  # measure -> (S, Q)


def by_group(
    systems: Mapping[str, Values],
    groups: Mapping[str, np.ndarray],
    *,
    baseline: str,
    subset: tuple[str, str, Mapping[str, np.ndarray]],
) -> tuple[dict[str, Any], list[list[object]]]:
    """Means with intervals over queries and seeds, and p against the baseline: for results.json, and as table rows.

    A row has the group, its number of queries, the system, its means, p (paired randomisation of a query's mean over
    seeds, not adjusted), and the share and mean of the subset, empty where that holds nothing.

    Args:
        systems: name -> values.
        groups: name -> (Q,) bool.
        baseline: a system.
        subset: key of the results, measure, and system -> (S, Q) bool of the queries of which the mean is taken, too.
    """
    key, measured, counted = subset
    results: dict[str, Any] = {}
    rows: list[list[object]] = []
    for group, mask in groups.items():
        cells: dict[str, Any] = {}
        for name, of in systems.items():
            values = {measure: each[:, mask] for measure, each in of.items()}
            means = {measure: over_queries_and_seeds(each) for measure, each in values.items()}
            base = {measure: systems[baseline][measure][:, mask] for measure in values}
            p = {m: paired_randomisation(*(v.mean(axis=0).round(9) for v in (values[m], base[m]))) for m in values}
            cells[name] = {measure: mean._asdict() | {"p": p[measure]} for measure, mean in means.items()}
            row = [group, int(mask.sum()), name, *(mean.shown() for mean in means.values())]
            row += ["" if name == baseline else f"{each:.4f}" for each in p.values()]
            if name in counted and (chosen := counted[name][:, mask]).any():
                mean, share = over_queries_and_seeds(values[measured], chosen), float(chosen.mean())
                cells[name][key] = {"share": share, measured: mean._asdict()}
                rows.append([*row, f"{share:.2f}", mean.shown()])
            else:
                rows.append([*row, "", ""])
        results[group] = {"queries": int(mask.sum()), "rounds": cells}
    return results, rows
