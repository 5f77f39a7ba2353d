"""``python -m e2e_runner`` is ``e2e-run``."""

from e2e_runner.cli import main

if __name__ == "__main__":
    main()
