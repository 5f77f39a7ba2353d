"""Answers 503 on port E2E_CHILD_PORT until the file E2E_CHILD_GO exists. Right verdict, declared: served."""

import os

from _http import serve

serve(lambda: 200 if os.path.exists(os.environ["E2E_CHILD_GO"]) else 503)
