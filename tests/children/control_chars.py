"""Fails; its output holds control characters, ANSI, NUL, `]]>` and U+FFFE. Right verdict: failed."""

import os
import sys

os.write(1, b"\x1b[31mred\x1b[0m \x1b]0;title\x07 \x00NUL \x07BEL \x08BS \x7fDEL\r\n")
os.write(1, b"<![CDATA[ ]]> & <tag attr='1'>\n")
os.write(1, "U+FFFE \ufffe U+FFFF \uffff U+0085 \x85 U+2028 \u2028 end\n".encode())
os.write(1, b"\x1b[2J\x1b[H\x1b[?25l\x1b[?1049h after the clear\n")
sys.exit(1)
