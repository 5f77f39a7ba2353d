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

__all__ = [
    "DatabasesUnavailable",
    "IsolatedDatabase",
    "IsolatedDatabases",
    "databases",
    "unique_name",
]
