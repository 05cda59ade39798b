"""Where the steps of a completion end, as positions in the token ids that were sampled.

Nothing is decoded and re-encoded: every token of the vocabulary has a piece of text (bytes), the
pieces of a row are laid end to end, and a boundary found in that text is carried back to the token
in which it lies. A token is never split: it opens the next step where only white space of it lies
before the boundary (" First", "\\n\\nFirst"), and else closes the step it stands in (".\\n\\n").
"""

import functools
import json
import re
import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from scope_jax.text.boundaries import BLANK_LINE, Separator
from scope_jax.text.probe import check_ids

# Stands for a special token in the text of a row: one byte, so that no separator is found across
# it; not whitespace, and not printable either, so that an end token alone makes no step.
_SPECIAL = b"\0"


def step_ends(ids: Sequence[int], tokenizer: Any, separator: Separator = BLANK_LINE) -> list[int]:
    """Exclusive end positions in `ids` of the steps of one completion; strictly increasing, the
    last is len(ids).

    ids        token ids as sampled (a list or an int array [T]), without the prompt; an end token
               may be among them
    separator  a literal string, a pattern of `re` over text, or a boundary of `text.boundaries`. It
               belongs to the step before it, as do blank lines that follow it; a match of width 0
               (a look-ahead) divides without belonging to either side. Where it ends inside of a
               token, that token opens the next step if it has nothing but white space before the
               end, and else closes this one

    A step without a visible character (separators do not count) joins the step before it, or the
    one after it if it is the first. No ids, no steps. Raises ValueError if the separator or an id
    cannot be used.
    """
    text, token_ends = _row_text(ids, tokenizer)
    if not token_ends:
        return []
    masked = bytearray(
        text
    )  # the text with its separators blanked out: what is left decides visibility
    boundaries = []
    for start, end, reach in _matches(text, separator):
        masked[start:end] = b" " * (end - start)
        # Tokens wholly inside the blank lines after the separator follow it.
        boundaries.append(
            max(_token_boundary(text, token_ends, end), bisect_right(token_ends, reach))
        )
    boundaries.append(len(token_ends))

    ends: list[int] = []
    start_byte, seen = 0, False
    for boundary in boundaries:
        if not boundary:
            continue  # before the first token
        end_byte = token_ends[boundary - 1]
        visible = _visible(masked[start_byte:end_byte])
        if seen and not visible:
            ends[-1] = max(boundary, ends[-1])
        elif visible or boundary == len(token_ends):
            ends.append(boundary)
            seen = True
        else:
            continue  # nothing visible yet: the text so far belongs to the first step
        start_byte = end_byte
    return ends


def _token_boundary(text: bytes, token_ends: list[int], end: int) -> int:
    """The number of tokens before a boundary at byte `end` of the text."""
    token = bisect_left(token_ends, end)
    first = token_ends[token - 1] if token else 0
    opens = end < token_ends[token] and text[first:end].decode("utf-8", "replace").isspace()
    return token if opens else token + 1


def stop_table(tokenizer: Any, separator: Separator, vocab_size: int) -> np.ndarray:
    """int32[states, vocab_size]: the next state after (state, token), to stop a row after its
    separator: a literal string, or `BLANK_LINE`.

    States count the bytes of the UTF-8 separator matched so far (Knuth-Morris-Pratt automaton; of a
    blank line, its newlines): 0 is the start, the last row accepts and is never left. A separator
    that is completed anywhere inside a token accepts. Special tokens, and ids past the tokenizer's
    vocabulary, lead back to 0. Unlike `step_ends`, the table also stops at a separator with nothing
    visible before it, and a token that goes on behind the separator is written whole. Raises
    ValueError where `separator` is neither.
    """
    step = _automaton(separator)
    accept = len(step)
    wanted = set().union(*step)
    table = np.zeros((accept + 1, vocab_size), np.int32)
    table[accept] = accept
    for token, piece in enumerate(token_bytes(tokenizer)[:vocab_size]):
        if not piece:
            table[:, token] = np.arange(accept + 1)  # a token without text changes nothing
        elif not wanted.isdisjoint(piece):  # all others lead to 0 from everywhere
            for start in range(accept):
                state = start
                for byte in piece:
                    state = step[state].get(byte, 0)
                    if state == accept:
                        break
                table[start, token] = state
    return table


def token_bytes(tokenizer: Any) -> list[bytes]:
    """The text of every id, index = id, as bytes; a single NUL for special tokens and ids that are
    not in use.

    A piece may be part of a character (byte-level BPE, byte fallback); a leading space of a piece
    is kept. Computed once per tokenizer and length of its vocabulary. Raises ValueError for a
    tokenizer whose pieces cannot be known.
    """
    size = len(tokenizer)
    known = _PIECES.get(tokenizer)
    if known is None or known[0] != size:
        known = (size, _read_pieces(tokenizer))
        _PIECES[tokenizer] = known
    return known[1]


_PIECES: "weakref.WeakKeyDictionary[Any, tuple[int, list[bytes]]]" = weakref.WeakKeyDictionary()


def _row_text(ids: Sequence[int], tokenizer: Any) -> tuple[bytes, list[int]]:
    """The text of a row, and the exclusive byte offset at which each of its tokens ends."""
    ids = np.asarray(ids, dtype=np.int64).tolist()
    if ids and min(ids) < 0:
        raise ValueError(
            f"step_ends: id {min(ids)} at position {ids.index(min(ids))}; ids are not negative"
        )
    table = token_bytes(tokenizer)
    size = len(table)
    pieces = [table[i] if i < size else _SPECIAL for i in ids]
    return b"".join(pieces), list(accumulate(map(len, pieces)))


def _matches(text: bytes, separator: Separator) -> Iterable[tuple[int, int, int]]:
    """(start, end, reach) in bytes of each separator; `reach` is where the blank lines after it
    end."""
    if isinstance(separator, str):
        pattern = _separator_bytes(separator)
        start = text.find(pattern)
        while start >= 0:
            end = start + len(pattern)
            yield start, end, _blank_lines_end(text, end)
            start = text.find(pattern, end)
        return
    _check_boundary(separator)
    # Each byte of an incomplete character becomes one lone surrogate: characters map back to bytes
    # exactly.
    decoded = text.decode("utf-8", "surrogateescape")
    at_char, at_byte = 0, 0
    for match in separator.finditer(decoded):
        if match.end() == 0:
            continue
        begin = at_byte + len(decoded[at_char : match.start()].encode("utf-8", "surrogateescape"))
        end = begin + len(match.group().encode("utf-8", "surrogateescape"))
        at_char, at_byte = match.end(), end
        yield begin, end, _blank_lines_end(text, end) if end > begin else end


def _check_boundary(separator: Any) -> None:
    """Raises ValueError where `separator` cannot be searched for in text."""
    over_text = isinstance(getattr(separator, "pattern", ""), str)
    if not hasattr(separator, "finditer") or not over_text:
        raise ValueError(
            f"step_ends: separator {separator!r}; a string, a compiled pattern over str or a"
            " boundary of text.boundaries is needed"
        )


def _blank_lines_end(text: bytes, end: int) -> int:
    """Where the blank lines end that follow a separator which ends at `end`; the next line's
    indentation is not one."""
    if text[end - 1 : end] != b"\n":
        return end
    run = _BLANK_LINES.match(text, end)
    return run.end() if run else end


_BLANK_LINES = re.compile(rb"(?:[ \t\r\f\v]*\n)*")


def _visible(part: bytes | bytearray) -> bool:
    return any(c.isprintable() and not c.isspace() for c in part.decode("utf-8", "replace"))


def _separator_bytes(separator: str) -> bytes:
    if not separator or "\0" in separator:
        raise ValueError(f"separator {separator!r}: a non-empty string without NUL is needed")
    return separator.encode("utf-8")


def can_stop(separator: Separator) -> bool:
    """Whether `stop_table` can stop a row at this separator."""
    return isinstance(separator, str) or separator is BLANK_LINE


def _automaton(separator: Separator) -> list[dict[int, int]]:
    """Transitions of the states before acceptance; a byte that is missing leads to 0."""
    if separator is BLANK_LINE:
        newline = ord("\n")
        return [{newline: 1}, {newline: 2} | dict.fromkeys(b" \t\r\f\v", 1)]
    if not isinstance(separator, str):
        raise ValueError(
            f"stop_table: separator is a {type(separator).__name__}; a literal string or BLANK_LINE"
            " is needed"
        )
    step: list[dict[int, int]] = []
    fallback = 0  # state of the longest proper suffix that is also a prefix
    for state, byte in enumerate(_separator_bytes(separator)):
        step.append({**(step[fallback] if state else {}), byte: state + 1})
        if state:
            fallback = step[fallback].get(byte, 0)
    return step


def _read_pieces(tokenizer: Any) -> list[bytes]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary: dict[str, int] = (backend or tokenizer).get_vocab()
    check_ids(vocabulary, f"tokenizer {tokenizer.name_or_path or type(tokenizer).__name__}")
    if backend is not None:
        to_bytes = _from_decoder(json.loads(backend.to_str())["decoder"])
    elif hasattr(tokenizer, "sp_model"):
        to_bytes = _from_decoder(_SENTENCEPIECE)
    else:
        raise ValueError(
            f"tokenizer {type(tokenizer).__name__}: the text of its tokens is not known; "
            "a tokenizer of the `tokenizers` library or sentencepiece is needed"
        )
    pieces = [_SPECIAL] * (max(vocabulary.values(), default=-1) + 1)
    for token, i in vocabulary.items():
        pieces[i] = to_bytes(token)
    for i, added in tokenizer.added_tokens_decoder.items():
        pieces[i] = (
            _SPECIAL if added.special else added.content.encode("utf-8")
        )  # added text is literal
    # transformers lists sentencepiece's user-defined pieces, such as Gemma's "\n\n", among the
    # special ids, though their text counts and is decoded. Those with a role (end, padding, ...)
    # are special whatever else is said of them.
    roles = {
        getattr(tokenizer, f"{role}_token_id")
        for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
    }
    text = {i for i, added in tokenizer.added_tokens_decoder.items() if not added.special} - roles
    for i in set(tokenizer.all_special_ids) - text:
        pieces[i] = _SPECIAL
    return pieces


_SENTENCEPIECE = {
    "type": "Sequence",
    "decoders": [{"type": "ByteFallback"}, {"type": "Metaspace", "replacement": "\u2581"}],
}


def _from_decoder(spec: dict[str, Any] | None) -> Callable[[str], bytes]:
    """The function from a token to its bytes that a decoder of the `tokenizers` library stands for.

    Parts that act on the row as a whole (joining, the blank before the first word) are left out.
    """
    parts = _flat(spec)
    kinds = [part["type"] for part in parts]
    known = {"ByteLevel", "ByteFallback", "Metaspace", "Replace", "Fuse", "Strip", "BPEDecoder"}
    if spec is None or not known.issuperset(kinds):
        raise ValueError(
            f"tokenizer with decoder {kinds or None}: the text of its tokens is not known; "
            f"a decoder made of {sorted(known)} is needed"
        )
    alphabet = _byte_alphabet()

    def to_bytes(token: str) -> bytes:
        for part in parts:
            kind = part["type"]
            if kind == "ByteFallback" and _BYTE_TOKEN.fullmatch(token):
                return bytes([int(token[3:5], 16)])
            if kind == "ByteLevel" and all(c in alphabet for c in token):
                return bytes(alphabet[c] for c in token)
            if kind == "Metaspace":
                token = token.replace(part["replacement"], " ")
            elif kind == "BPEDecoder":
                token = token.replace(part["suffix"], " ")
            elif kind == "Replace" and "String" in part["pattern"]:
                token = token.replace(part["pattern"]["String"], part["content"])
            elif kind == "Replace":
                # (a replacement is literal text: its backslashes are doubled for `re`)
                token = re.sub(
                    part["pattern"]["Regex"], part["content"].replace("\\", r"\\"), token
                )
        return token.encode("utf-8", "surrogatepass")

    return to_bytes


def _flat(spec: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The parts of a decoder, sequences within it taken apart."""
    if spec is None:
        return []
    return (
        [part for inner in spec["decoders"] for part in _flat(inner)]
        if spec["type"] == "Sequence"
        else [spec]
    )


_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


@functools.cache
def _byte_alphabet() -> dict[str, int]:
    """Characters that stand for bytes in byte-level BPE (GPT-2): printable Latin-1 as itself, the
    rest from 256 up."""
    plain = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {
        chr(256 + n): byte for n, byte in enumerate(others)
    }
