"""Fails an assertion. Right verdict: failed, exit code 1."""

print("about to fail")
assert 1 + 1 == 3, "one and one is not three"
