"""Changes to a folder of its own, deletes it, exits 0. Right verdict: passed."""

import os
import tempfile

folder = tempfile.mkdtemp()
os.chdir(folder)
os.rmdir(folder)
try:
    os.getcwd()
except FileNotFoundError:
    print("my working folder is gone")
else:
    raise SystemExit("the working folder is still there")
