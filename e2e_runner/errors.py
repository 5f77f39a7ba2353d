"""Errors that a user can cause or must hear of.

::

    E2ERunError            shown without a traceback: what failed, the facts seen, what to do next
    ├── UsageError         exit 2: a wrong option, argument or configuration
    │   └── ConfigError    exit 2: names file, line, key and what is accepted
    ├── SetupError         exit 3: the surroundings cannot be set up (state folder, log disk, tier)
    └── NothingSelected    exit 4: there is nothing to run
"""


class E2ERunError(Exception):
    """Base of the errors that are shown to a person as they stand, without a traceback."""

    exit_code = 3

    def __init__(self, message: str, *, facts: tuple[str, ...] = (), remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts
        self.remedy = remedy

    def __str__(self) -> str:
        """Give the message, then a line for each fact, then what to do next."""
        lines = [self.message, *(f"  {fact}" for fact in self.facts)]
        if self.remedy:
            lines.append(f"To fix this: {self.remedy}")
        return "\n".join(lines)


class UsageError(E2ERunError):
    """An option, argument or setting that cannot be used."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration or metadata value that cannot be used; the message starts ``file:line: key``."""


class SetupError(E2ERunError):
    """The surroundings of a run cannot be set up: state folder, containment tier, report path."""

    exit_code = 3


class NothingSelected(E2ERunError):  # noqa: N818 - an exit code of its own, not a mistake
    """There is nothing to run: no example was found, or a filter left none."""

    exit_code = 4
