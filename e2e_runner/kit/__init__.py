"""What examples are written with: isolated databases, servers, polling, checks, and narration.

It works with no runner around. Under ``e2e-run`` the same calls also tell the run what the script is
doing, and use what the run has prepared for it.
"""

from e2e_runner.kit.isolation import (
    DatabasesUnavailable,
    IsolatedDatabase,
    IsolatedDatabases,
    databases,
)
from e2e_runner.kit.names import unique_name
from e2e_runner.kit.servers import Server, ServerNotReady, companion, serve, serve_command

__all__ = [
    "DatabasesUnavailable",
    "IsolatedDatabase",
    "IsolatedDatabases",
    "Server",
    "ServerNotReady",
    "companion",
    "databases",
    "serve",
    "serve_command",
    "unique_name",
]
