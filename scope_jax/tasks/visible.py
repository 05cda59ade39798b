"""Whether there is anything to be seen in a text."""

import re

# White space, controls, and what Unicode says is drawn as nothing: blanks of no width, joiners,
# byte order marks, fillers, variation selectors, tags.
_SEEN = re.compile(
    "[^\\s\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def is_visible(text: str) -> bool:
    """Whether a text has a character that can be seen. Takes time in proportion to the text."""
    return _SEEN.search(text) is not None
