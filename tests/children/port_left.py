"""Leaves a daemon that listens on port E2E_CHILD_PORT, exits 0. Right verdict: leaked, with the port."""

import os
import socket

from _detach import leave_behind

port = int(os.environ["E2E_CHILD_PORT"])
with socket.create_server(("127.0.0.1", port)):
    leave_behind(daemon=True)
print(f"left a listener on port {port}")
