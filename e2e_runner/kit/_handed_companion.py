"""The companion of an example, where the run that has started it says where it is."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from e2e_runner.handover import COMPANIONS, decode_companion
from e2e_runner.kit.servers import Server, reachable

_STANDARD_PORTS = {"http": 80, "https": 443}


def given(file: Path) -> Server | None:
    """Give the server that `file` is; None where the run does not tell.

    It was ready when the example was started, and the run reports one that ended by itself: asking it
    once more would only disturb its log.
    """
    url = decode_companion(os.environ.get(COMPANIONS, ""), file)
    if url is None or "E2E_RUN" not in os.environ:
        return None
    parts = urlsplit(url)
    return Server(
        host=reachable(parts.hostname or ""),
        port=parts.port or _STANDARD_PORTS.get(parts.scheme, 0),
        pid=None,
        log_file=None,
        _scheme="https" if parts.scheme == "https" else "http",
    )
