"""Exits 0 only in the surroundings that e2e-run promises to a script. Right verdict: passed."""

import os
import sys

wrong = []
for name in ("PYTHONUNBUFFERED", "E2E_RUN"):
    if os.environ.get(name) != "1":
        wrong.append(f"{name} is {os.environ.get(name)!r}, not '1'")
for name in ("E2E_RUN_ID", "E2E_RUN_EXAMPLE", "MPLBACKEND"):
    if not os.environ.get(name):
        wrong.append(f"{name} is not set")
if sys.stdin.read() != "":
    wrong.append("standard input is not empty")
folder = os.environ.get("TMPDIR")
if not folder or not os.path.isdir(folder):
    wrong.append(f"TMPDIR is {folder!r}, not a folder")
elif os.listdir(folder):
    wrong.append(f"TMPDIR holds {os.listdir(folder)}")
if os.path.realpath(os.getcwd()) != os.path.dirname(os.path.realpath(__file__)):
    wrong.append(f"the working folder is {os.getcwd()}")
if wrong:
    sys.exit("\n".join(wrong))
print("as promised")
