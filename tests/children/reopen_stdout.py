"""Opens /dev/stdout and writes to it by name, before, between and after prints. Right verdict: passed."""

import os

print("first", flush=True)
with open("/dev/stdout", "a") as stdout:
    stdout.write("second\n")
print("third", flush=True)
fd = os.open("/dev/stdout", os.O_WRONLY | os.O_APPEND)
os.write(fd, b"fourth\n")
os.close(fd)
