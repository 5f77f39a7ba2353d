"""Finds the examples: walks the folders, analyses the sources, makes the plan."""

from e2e_runner.discovery.plan import make_plan

__all__ = ["make_plan"]
