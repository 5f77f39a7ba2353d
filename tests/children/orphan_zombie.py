"""Double-forks a process that exits at once: nothing is left. Right verdict: passed."""

import os

reader, writer = os.pipe()
middle = os.fork()
if middle == 0:
    if os.fork() == 0:
        os.setsid()
    os._exit(0)
os.waitpid(middle, 0)
os.close(writer)
os.read(reader, 1)  # ends when the orphan is gone
print("nothing is left")
