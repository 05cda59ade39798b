"""Chat turns read back out of the text of a prompt. verl and TRL log a prompt decoded without its
special tokens: what stands there is "user\\n1+1?\\nassistant\\n", which no policy was shown."""

import dataclasses
import functools
from typing import Any, NamedTuple

from scope_jax.tasks.visible import is_visible
from scope_jax.text.chat import chat_prompts

# What stands for the turns while a template is looked at: digits, which every tokenizer of problems
# has, and which no template holds.
_SYSTEM, _USER = "9157352", "8264713"


class Turns(NamedTuple):
    """What a prompt was made of."""

    user: str
    system: str | None  # None: what the template puts there by itself, if anything


class _Frame(NamedTuple):
    """What a template writes around the turns. `parts`: before the user's turn and after it, or
    before the system's, between them, and after the user's."""

    parts: tuple[str, ...]
    bare: bool  # without special tokens


@dataclasses.dataclass(frozen=True, eq=False)
class ChatTexts:
    """The texts that a tokenizer's chat template gives, read backwards."""

    tokenizer: Any

    def turns(self, text: str) -> Turns | None:
        """The turns of a prompt as it was logged, with or without its special tokens; None where
        the template does not give this very text for one turn of the user, with one of the system
        before it at most."""
        for frame in self._frames:
            found = _taken_out(text, frame)
            if found is not None and self._rendered(found, bare=frame.bare) == text:
                return found
        return None

    @functools.cached_property
    def _frames(self) -> list[_Frame]:
        """Those without a system's turn come first: their text may hold the template's own one."""
        found = []
        for bare in (True, False):
            for turns in (Turns(_USER, None), Turns(_USER, _SYSTEM)):
                rest, parts = self._rendered(turns, bare=bare), []
                for mark in (turns.system, turns.user):
                    if mark is not None:
                        before, _, rest = rest.partition(mark)
                        parts.append(before)
                # Where nothing can be seen around a turn, nothing tells it from any other text.
                if is_visible(parts[0] + rest):
                    found.append(_Frame((*parts, rest), bare))
        return found

    def _rendered(self, turns: Turns, *, bare: bool) -> str:
        [text] = chat_prompts(self.tokenizer, [turns.user], turns.system)
        if not bare:
            return text
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def _taken_out(text: str, frame: _Frame) -> Turns | None:
    first, *middle, last = frame.parts
    inner = text[len(first) : len(text) - len(last)]
    if not (text.startswith(first) and text.endswith(last) and first + inner + last == text):
        return None
    system: str | None = None
    if middle:
        system, between, inner = inner.partition(middle[0])
        if not between:
            return None
    # An answer's opening within the turn: a conversation of several.
    several = is_visible(last) and last.strip() in inner
    return None if several or not is_visible(inner) else Turns(inner, system)
