"""Serves HTTP on port E2E_CHILD_PORT for ever. Right verdict: timeout that advises `serve`; declared: served."""

from _http import serve

serve(lambda: 200)
