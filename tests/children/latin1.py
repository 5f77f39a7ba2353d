# -*- coding: latin-1 -*-
"""Is written in Latin-1, not UTF-8. Right verdict: passed."""

print(ascii("café £ ÿ"))
