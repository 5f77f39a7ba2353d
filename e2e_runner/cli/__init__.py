"""The command line: one thin module per command."""


def main() -> None:
    """Run ``e2e-run``."""
