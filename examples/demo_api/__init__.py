"""A small trading service on two databases. The examples run against it."""

__version__ = "2.0.0"
