"""Fails; its output looks like Rich markup. Right verdict: failed, output shown as it stands."""

import sys

print("[bold red]x[/] [/nothing] [link=file:///etc/passwd]y[/link] :smile: [[]] \\[z]")
sys.exit(1)
