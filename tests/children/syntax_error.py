"""Does not parse. Right verdict: failed, with Python's own SyntaxError."""

def broken(:
    return 1
