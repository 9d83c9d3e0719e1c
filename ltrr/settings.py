"""What a config of the funnel may hold, and of which type each value is.

Knows keys and types; knows nothing about what they configure.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ltrr.config import check_value, load_config

SCHEMA: dict[str, Any] = {  # what a config may hold; an arm's keys are its constructor's arguments
    "data.path": str | None,
    "data.fields": dict[str, str] | None,
    "data.query_fields": list[str],
    "data.qrels": str,
    "cache": str,
    "arms": dict[str, dict[str, Any] | None],  # null = there is no such arm
    "tune.splits": list[str],
    "fusion.method": Literal["rrf", "convex"],
    "fusion.arms": list[str] | None,
    "fusion.weights": dict[str, float] | None,
    "fusion.norm": Literal["minmax", "zscore"] | None,
    "fusion.k": float,
    "fusion.added": dict[str, float] | None,
    "policy.depths": dict[str, int] | None,
    "policy.cut": int,
    "policy.arms_model": str | None,
    "policy.arms_costs": dict[str, float] | None,
    "policy.arms_drawn_cost": float | None,
    "policy.arms_cap": float | None,
    "policy.arms_budget": float | None,
    "policy.model": str | None,
    "policy.budget": float | None,
    "policy.explore": dict[str, Any] | None,  # as an arm
    "policy.features": list[str] | None,
    "policy.learn": bool,
    "ranker": dict[str, Any] | None,  # as an arm
    "serve.host": str,
    "serve.port": int,
    "serve.max_k": int,
    "serve.events": str | None,
    "serve.keep_days": float | None,
    "serve.snapshot_s": float,
}
KEYS: dict[str, set[str] | None] = {  # section -> its keys, None = anything
    key.split(".")[0]: {k.split(".")[1] for k in SCHEMA if k.startswith(f"{key.split('.')[0]}.")} or None
    for key in SCHEMA
}


def read_settings(config: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """A config with overrides; ConfigError names the key that is unknown or of a wrong type."""
    settings = load_config(config, overrides, KEYS)
    for key, hint in SCHEMA.items():
        section, _, name = key.partition(".")
        place = settings if not name else settings.get(section) or {}
        if (name or section) in place:
            place[name or section] = check_value(f"config {config}: {key}", place[name or section], hint)
    return settings
