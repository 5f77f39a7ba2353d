"""Leaves 20 dead children unreaped while it runs, exits 0. Right verdict: passed."""

import os

children = []
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    children.append(pid)
for pid in children:
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # dead, and still unreaped
print(f"{len(children)} zombies")
