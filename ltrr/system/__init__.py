"""Makes opened arms, tuned weights, a policy and a funnel from a config."""

from ltrr.system.system import System, open_systems

__all__ = ["System", "open_systems"]
