"""Ends its main thread while another waits for ever. Right verdict: timeout."""

import threading

from _ready import ready

threading.Thread(target=threading.Event().wait, name="forgotten").start()
ready()
print("the main thread ends", flush=True)
