"""Reporters: they tell of a run, from its events and the state that those add up to."""

from e2e_runner.report.factory import make_reporters
from e2e_runner.report.reporter import Reporter
from e2e_runner.report.targets import open_reports

__all__ = ["Reporter", "make_reporters", "open_reports"]
