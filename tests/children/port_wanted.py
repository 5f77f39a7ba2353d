"""Binds port E2E_CHILD_PORT. Right verdict: passed; failed, cause port-in-use, when it is taken."""

import os
import socket

port = int(os.environ["E2E_CHILD_PORT"])
with socket.create_server(("127.0.0.1", port)):
    print(f"port {port} is mine")
