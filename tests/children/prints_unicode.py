"""Prints text from many scripts, whatever the locale; exits 0. Right verdict: passed."""

import os

os.write(1, "café · 価格 · цена · 💹 · e\u0301 · \u202eright to left\u202c\n".encode())
