"""A small HTTP server for the children that serve. Not an example."""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from _ready import ready


def serve(status):
    """Answer every GET on 127.0.0.1:E2E_CHILD_PORT with the status that `status()` gives, for ever."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = b"hello\n"
            self.send_response(status())
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    port = int(os.environ["E2E_CHILD_PORT"])
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    print(f"listening on port {port}", flush=True)
    ready()
    server.serve_forever()
