"""Asks a question on standard input. Right verdict: failed, cause eof-on-input."""

name = input("What is your name? ")
print(f"Hello, {name}")
