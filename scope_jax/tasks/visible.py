"""Whether there is anything to be seen in a text."""

import re

# For a class of characters: white space but for "\n", controls, and what Unicode says is drawn as
# nothing: blanks of no width, joiners, byte order marks, fillers, variation selectors, tags.
BLANKS = (
    "\x00-\x09\x0b-\x20\x7f-\xa0\xad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180f"
    "\u2000-\u200f\u2028-\u202f\u205f-\u206f\u2800\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_SEEN = re.compile(f"[^\n{BLANKS}]")


def is_visible(text: str) -> bool:
    """Whether a text has a character that can be seen. Takes time in proportion to the text."""
    return _SEEN.search(text) is not None
