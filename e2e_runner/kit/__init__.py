"""What examples are written with: isolated databases, servers, polling, checks, and narration.

It works with no runner around. Under ``e2e-run`` the same calls also tell the run what the script is
doing, and use what the run has prepared for it.
"""

from e2e_runner.kit.checks import CheckFailed, api_response, check
from e2e_runner.kit.isolation import (
    DatabasesUnavailable,
    IsolatedDatabase,
    IsolatedDatabases,
    databases,
)
from e2e_runner.kit.names import unique_name
from e2e_runner.kit.narration import metric, section, step, success
from e2e_runner.kit.servers import Server, ServerNotReady, companion, serve, serve_command
from e2e_runner.kit.waiting import NotInTime, wait_until

__all__ = [
    "CheckFailed",
    "DatabasesUnavailable",
    "IsolatedDatabase",
    "IsolatedDatabases",
    "NotInTime",
    "Server",
    "ServerNotReady",
    "api_response",
    "check",
    "companion",
    "databases",
    "metric",
    "section",
    "serve",
    "serve_command",
    "step",
    "success",
    "unique_name",
    "wait_until",
]
