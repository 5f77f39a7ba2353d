"""A small trading service: login, the current user, and a live ticker. The examples run against it."""

__version__ = "1.0.0"
