"""TCP ports of this machine: who listens on them, in words, and how leftovers are stopped."""

from e2e_runner.ports.leftover import Outcome, stop_leftover
from e2e_runner.ports.ownership import (
    EarlierRun,
    advice,
    describe,
    earlier_run,
    holder_words,
    owners,
    process_info,
    started_for,
    taken,
)
from e2e_runner.ports.sockets import Listener, bindable, listening, listening_ports_of

__all__ = [
    "EarlierRun",
    "Listener",
    "Outcome",
    "advice",
    "bindable",
    "describe",
    "earlier_run",
    "holder_words",
    "listening",
    "listening_ports_of",
    "owners",
    "process_info",
    "started_for",
    "stop_leftover",
    "taken",
]
