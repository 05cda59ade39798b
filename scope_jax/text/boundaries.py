r"""What divides a text into steps: a literal separator, a pattern of `re`, or a boundary by name.

All of them are used through `finditer(text)`, whose matches stand between steps and belong to the
step before; so whoever cuts a text, a row of ids or a reply finds the same places.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Protocol


class Boundary(Protocol):
    """What a compiled pattern can do, and the named boundaries too."""

    def finditer(self, text: str, /) -> Iterator[re.Match[str]]:
        """The boundaries of a text, in order; they do not overlap."""
        ...

    def __hash__(self) -> int: ...


# A literal text or a boundary.
Separator = str | Boundary

# A line with nothing on it, whatever the system that wrote it: "\n\n", "\n \n", "\r\n\r\n".
BLANK_LINE = re.compile(r"\n[ \t\r\f\v]*\n")

_STEP = (
    r"[^\S\n]*(?:[#>*_-]{1,6}[^\S\n]*)?(?:(?i:step)[^\S\n]{0,3}\d{1,3}\b|\d{1,3}[.)](?=[^\S\n]|\*))"
)
# Before "Step 2", "2." and "2)" at the start of a line, and before "Step 2:" anywhere.
NUMBERED_STEPS = re.compile(rf"\n(?={_STEP})|(?<=\S)[^\S\n]{{1,9}}(?=(?i:step)\s{{0,3}}\d{{1,3}}:)")

# What is left open at the end of a line or after a full stop is decided by what stands around it.
_BREAK = r"(?:(?:[^\S\n]*\n)++|[^\S\n]++)"
_CLOSERS = r"""(?:["'”’»)\]}*_`]|\$(?!\$)|\\\))*+"""
_PLACES = re.compile(
    rf"""
    (?P<stop> (?<![.!?…]) (?:[.!?…]++ {_CLOSERS} {_BREAK})++ )
    | (?P<wide> [。！？]++ [”’」』）】"')\]*]*+ {_BREAK}? )
    | (?P<blank> \n (?:[ \t\r\f\v]*\n)++ )
    | (?P<line> \n )
    | (?P<math> \$\$ | \\[\[\]] | \\(?:begin|end)\{{[a-zA-Z]{{1,20}}\*?\}} )
    """,
    re.VERBOSE,
)
_WINDOW = 48  # characters before a place that are looked at


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Never the end of a sentence, whatever follows.
_ALWAYS_OPEN = _words(
    "approx assoc capt cf col dr e.g eq eqn eqs fig figs gen gov hon i.e lt messrs mr mrs ms mt"
    " prof rep resp rev sen sgt st viz vs"
)
# The end of one only where no number follows: "No. 5", "ex. 3".
_BEFORE_NUMBERS = _words("art ch ex no nos pg pp prob prop sec thm vol")
# Words that begin a sentence more often than they follow an initial or "U.S.".
_BEGINNINGS = _words(
    "A An And As At Because But By Find First Finally For From Given He Hence Her His How However"
    " If In It Its Let Next Note Now On Once Our Second She Similarly Since So Solve Step The Their"
    " Then There Therefore These They This Thus To Using We What When Where Which You Your"
)
# A number, or a letter, that begins an item of a list; behind a full stop, unless that is open too.
_ITEM = re.compile(
    r"(?:\A|\n|(?<!\.)(?P<stop>[.!?]\s)|[:;]\s(?=1\Z)|\s\s)[^\S\n]{0,8}"
    r"(?:[#>*_-]{1,6}[^\S\n]?)?\d{1,3}\Z"
    r"|(?:\A|\n)[^\S\n]{0,8}[a-zA-Z]\Z"
    r"|\b(?i:step|case|part|question|problem|method|option|example)\s\d{1,3}\Z"
)
_UNITS = _words("ft gal hr hrs in lb lbs min mins oz pt qt sec secs yd yds")
_WORD = re.compile(r"(?:[A-Za-z]\.)*[A-Za-z]+\Z")
_INITIALS = re.compile(r"(?:[A-Z]\.)*[A-Z]|Ph\.D\Z")
_BEFORE_INITIAL = re.compile(
    r"(?:\A|[.!?]\s+|\n\s*|\b(?:and|or|by|with|named)\s+|\b[A-Z][a-z]+\s+|\b[A-Z]\.\s?)[A-Z]\Z"
)
_NAMES_OF_POINTS = re.compile(
    r"\b(?:[Aa]nswer|[Aa]ngle|[Cc]ase|[Cc]hoice|[Ll]ine|[Oo]ption|[Pp]art|[Pp]oint|[Ss]et|[Vv]ertex"
    r"|[Vv]ariable|[Cc]ircle|[Gg]roup)\s+\**[A-Z]\Z"
)
# How a new line of its own begins, and what a line ends with that goes on.
_NEW_LINE = re.compile(
    r"[^\S\n]*(?:[-*•–][^\S\n]+|\d{1,3}[.)](?=\s|\*)|\(\w{1,3}\)\s|\#{1,6}\s|\*\*|>\s"
    r"|(?i:step)\s\d|[\"'“(]?[^\W\d_a-z])"
)
_UNFINISHED = re.compile(r"(?:[,=+\-−*/(\[{&<>≤≥~|×÷]|\\\\|\b(?:and|or|of|the|is|are))[^\S\n]*\Z")
# A line that begins with a number, a letter or an opening sign and has something equal something.
_EQUATION = re.compile(r"[^\S\n]{0,8}(?:[\d$(\\]|[a-zA-Z](?![a-zA-Z]{2}))[^\n=]{0,80}=")
_LOWER_WORD = re.compile(r"[a-z]{2}|a\s")
_GOES_ON = re.compile(r"[+=×÷/^,;:)\]}<>≤≥≈%|&]|[-−*–](?=\s)")
_CAPITAL = re.compile(r"[\"'“‘(\[*_$\\]*[^\W\d_a-z]")


@dataclasses.dataclass(frozen=True)
class Sentences:
    """The ends of sentences, in texts as language models write them.

    A sentence ends behind ".", "!" or "?" (with the quotes, brackets and stars that close there)
    before white space, at a blank line, and at the end of a line where a heading, an item of a list
    or a capital letter begins the next, or where both are equations. It does not end behind the
    number of a list or of a step ("1.", "2)", "Step 3."), in a decimal, behind an abbreviation
    ("e.g.", "Dr.", "approx.", "U.S.") or an initial, before a lower-case word or a sign that goes
    on ("5! = 120"), nor inside of display mathematics. Chinese and Japanese full stops need no
    white space after them. Takes time in proportion to the text.
    """

    def finditer(self, text: str, /) -> Iterator[re.Match[str]]:
        """The ends of the sentences of a text."""
        inside: str | None = None  # what opened the display that a place stands in
        for place in _PLACES.finditer(text):
            kind = place.lastgroup
            if kind == "math":
                inside = _display(inside, place.group())
            elif kind == "blank":
                inside = None
                yield place
            elif kind == "stop":
                blank = place.group().count("\n") > 1
                inside = None if blank else inside
                if inside is None and _ends_sentence(text, place, blank):
                    yield place
            elif inside is None and (kind == "wide" or _ends_line(text, place)):
                yield place


SENTENCES = Sentences()


def _display(inside: str | None, mark: str) -> str | None:
    """What opened the display mathematics behind a mark of it; None outside."""
    if inside is None:
        return None if mark == "\\]" or mark.startswith("\\end") else mark
    closed = {"$$": "$$", "\\[": "\\]"}.get(inside, inside.replace("begin", "end"))
    return None if mark == closed else inside


def _ends_sentence(text: str, place: re.Match[str], blank: bool) -> bool:
    """Whether a sentence ends at a full stop (or "!", "?") that white space follows."""
    start, end = place.span()
    before = _tail(text[max(0, start - _WINDOW - 1) : start], _WINDOW)
    mark = place.group().rstrip()
    one_dot = mark.startswith(".") and not mark.startswith("..")
    if one_dot and _begins_item(before):
        return False
    after = text[end : end + _WINDOW].lstrip()
    if blank or not after:
        return not (one_dot and not after and _is_open(before, after))
    if _LOWER_WORD.match(after) or (_GOES_ON.match(after) and "\n" not in place.group()):
        return False
    if mark.startswith(("..", "…")):
        return _CAPITAL.match(after) is not None
    return not (one_dot and _is_open(before, after))


def _tail(text: str, size: int) -> str:
    """The end of a text, behind a mark that it is not all of it where it is not."""
    return text if len(text) <= size else "\0" + text[-size:]


def _begins_item(before: str) -> bool:
    """Whether `before` ends with the number of an item of a list, or of a step."""
    if not before[-1:].isalnum():
        return False
    tail = _tail(before, 24)
    item = _ITEM.search(tail)
    if item is None or item["stop"] is None:
        return item is not None
    return item["stop"][0] != "." or not _is_open(tail[: item.start()], tail[item.end("stop") :])


def _is_open(before: str, after: str) -> bool:
    """Whether the full stop behind `before` is that of an abbreviation or an initial, with more to
    come."""
    tail = before[-16:]
    found = _WORD.search(tail)
    if found is None:
        return False
    if tail[: found.start()][-2:].strip()[-1:].isdigit():
        return found.group() in _UNITS and after[:1].isdigit()
    word = found.group()
    if word.lower() in _ALWAYS_OPEN:
        return True
    if word.lower() in _BEFORE_NUMBERS:
        return after[:1].isdigit()
    if not _INITIALS.fullmatch(word):
        return False
    if re.match(r"[A-Z]\.", after):
        return True
    first = re.match(r"[\"'“(*_]*([A-Za-z]+)", after)
    if first is None or first.group(1) in _BEGINNINGS:
        return False
    if len(word) > 1:
        return True
    return bool(_BEFORE_INITIAL.search(before)) and not _NAMES_OF_POINTS.search(before)


def _ends_line(text: str, place: re.Match[str]) -> bool:
    """Whether a line without a full stop is a piece of its own: by how the next line begins."""
    start, end = place.span()
    before = text[max(0, start - _WINDOW) : start]
    if _UNFINISHED.search(before[-12:]):
        return False
    if _NEW_LINE.match(text, end):
        return True
    return "=" in before.rpartition("\n")[2] and _EQUATION.match(text, end) is not None


NAMED: dict[str, Separator] = {
    "sentences": SENTENCES,
    "numbered_steps": NUMBERED_STEPS,
    "lines": "\n",
    "blank_lines": BLANK_LINE,
}


def divider(separator: str, boundary: str = "") -> Separator:
    r"""What divides a text: the boundary of that name, else `boundary` as a pattern of `re`; where
    it is empty, `separator`, of which "\n\n" stands for any blank line."""
    if boundary in NAMED:
        return NAMED[boundary]
    if boundary:
        return re.compile(boundary)
    return BLANK_LINE if separator == "\n\n" else separator


def places(text: str, separator: Separator) -> Iterator[re.Match[str]]:
    """The matches of a separator in a text, in order."""
    if isinstance(separator, str):
        separator = re.compile(re.escape(separator))
    return separator.finditer(text)


def split_steps(text: str, separator: Separator) -> list[str]:
    """The steps of a text, each with its separator; the pieces join to the text. An empty tail is
    no step. A match of width 0 (a look-ahead) divides without belonging to either side."""
    steps, start = [], 0
    for match in places(text, separator):
        if match.end() > start:
            steps.append(text[start : match.end()])
            start = match.end()
    return [*steps, text[start:]] if text[start:] else steps
