"""Dies of a real SIGSEGV: reads address 0. Right verdict: failed, cause signal, SIGSEGV."""

import ctypes

print("about to read address 0", flush=True)
ctypes.string_at(0)
