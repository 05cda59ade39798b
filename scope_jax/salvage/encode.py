"""A logged rollout in the policy's ids."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from scope_jax.salvage.fields import Logged
from scope_jax.salvage.settings import Settings
from scope_jax.salvage.turns import ChatTexts, Turns
from scope_jax.tasks import Domain, Problem
from scope_jax.tasks.visible import is_visible
from scope_jax.teachers.replies import encode_step
from scope_jax.text import encode_in_place
from scope_jax.text.chat import chat_prompts
from scope_jax.text.steps import token_bytes

# How a prompt was read. A text, of a policy with a chat template: the template gives it for turns
# that were read back, or it does not, and nobody knows whether the policy was shown it like this.
KNOWN, TURNS, ALONE = "as_logged", "from_chat_text", "as_they_stand"


@dataclasses.dataclass(frozen=True)
class Row:
    """A rollout that can be corrected."""

    logged: Logged
    problem: Problem
    prompt_ids: list[int]
    ids: list[int]  # of the completion; the end token of one that was not cut off included
    finished: bool
    reading: str = KNOWN  # one of KNOWN, TURNS, ALONE


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """Puts rollouts into ids. `ends`: the tokens that end a solution; `end` is the one to write."""

    tokenizer: Any
    domain: Domain
    settings: Settings
    vocabulary: int
    ends: tuple[int, ...]
    end: int

    @property
    def chat(self) -> bool:
        """Whether problems are shown in the chat template."""
        by_template = bool(self.tokenizer.chat_template)
        return by_template if self.settings.chat == "auto" else self.settings.chat == "on"

    def check(self) -> None:
        """Raise ValueError where no problem can be shown: a template that is missing or fails."""
        if self.chat and not self.tokenizer.chat_template:
            raise ValueError("--chat=on: the tokenizer has no chat template; use --chat=off")
        if self.chat:
            chat_prompts(self.tokenizer, ["1+1?"], self.settings.system or self.domain.system)

    def row(self, logged: Logged) -> Row | str:
        """The row, or why there is none: a sentence."""
        settings = self.settings
        try:
            turns = self._turns(logged)
            prompt = logged.prompt_ids or self._prompt(logged, turns)
        except ValueError as error:
            return f"prompt: {error}"
        if prompt is None or len(prompt) > settings.prompt_tokens:
            return f"the prompt has more tokens than --prompt-tokens={settings.prompt_tokens}"
        found = self._completion(logged)
        if isinstance(found, str):
            return found
        ids, finished = found
        if len(ids) > settings.new_tokens:
            return (
                f"the completion has {len(ids)} tokens, more than"
                f" --new-tokens={settings.new_tokens}"
            )
        if max([*prompt, *ids]) >= self.vocabulary:
            return f"a token id of {max([*prompt, *ids])}, the vocabulary has {self.vocabulary}"
        if not is_visible(exact(ids, self.tokenizer)):
            return "the completion has nothing visible"
        problem = self._problem(logged, prompt, turns)
        reading = KNOWN
        if self.chat and logged.prompt is not None and not (logged.messages or logged.prompt_ids):
            reading = TURNS if turns else ALONE
        return Row(
            logged,
            Problem(logged.id, problem, logged.answer, logged.solution),
            prompt,
            ids,
            finished,
            reading,
        )

    @functools.cached_property
    def _chat_texts(self) -> ChatTexts:
        return ChatTexts(self.tokenizer)

    def _turns(self, logged: Logged) -> Turns | None:
        """What a prompt that was logged as a text was made of, where the chat template tells."""
        if logged.messages or logged.prompt is None or not self.chat:
            return None
        return self._chat_texts.turns(logged.prompt)

    def _problem(self, logged: Logged, prompt: Sequence[int], turns: Turns | None) -> str:
        """The question, for process reward models and teachers."""
        if logged.problem is None and self.chat:  # ids alone
            text = self.tokenizer.decode(list(prompt), skip_special_tokens=True)
            turns = self._chat_texts.turns(text)
        if turns is not None and logged.problem == logged.prompt:  # no other one was logged
            return turns.user
        return logged.problem or shown(prompt, self.tokenizer)

    def _prompt(self, logged: Logged, turns: Turns | None) -> list[int] | None:
        if logged.messages:
            return self._prompts(logged.prompt or "", logged.system, True)
        if turns is not None:
            return self._prompts(turns.user, turns.system, True)
        if logged.prompt is not None:  # as the policy was shown it
            return self._prompts(logged.prompt, None, False)
        problem = Problem("", logged.problem or "", "")
        text = self.domain.policy_prompt(problem)
        system = self.domain.system if self.settings.system is None else self.settings.system
        return self._prompts(text, system, self.chat)

    def _prompts(self, text: str, system: str | None, chat: bool) -> list[int] | None:
        most = self.settings.prompt_tokens
        [ids] = encode_in_place(self.tokenizer, [text], max_length=most, chat=chat, system=system)
        return ids

    def _completion(self, logged: Logged) -> tuple[list[int], bool] | str:
        """(ids, whether it ended by itself)."""
        ids = logged.completion_ids
        if ids is None:
            text = logged.completion or ""
            for mark in (self.tokenizer.convert_ids_to_tokens(end) for end in self.ends):
                text = text.removesuffix(mark)
            encoded = encode_step(text, self.tokenizer, self.domain.separator)
            if encoded is None:
                return "the completion cannot be written in the tokens of --tokenizer"
            ids = encoded
        first = next((n for n, id_ in enumerate(ids) if id_ in self.ends), None)
        if first is not None:
            return ids[: first + 1], True
        return (list(ids), False) if logged.cut_off else ([*ids, self.end], True)


def exact(ids: Sequence[int], tokenizer: Any) -> str:
    """The text of ids that others precede, blanks as they are; special tokens are left out. Texts
    of neighbours join to the text of all."""
    pieces = token_bytes(tokenizer)
    kept = b"".join(pieces[i] for i in ids if i < len(pieces) and pieces[i] != b"\0")
    return kept.decode("utf-8", "replace")


def shown(ids: Sequence[int], tokenizer: Any) -> str:
    """The text of a prompt for people and verifiers: without special tokens."""
    return exact(ids, tokenizer).strip()


def verbatim(ids: Sequence[int], tokenizer: Any) -> str:
    """The text of a prompt as a trainer encodes it again: special tokens by their names, but for a
    first one that the tokenizer puts before every text by itself."""
    pieces = token_bytes(tokenizer)
    bos = tokenizer.bos_token_id
    if bos is not None and list(ids[:1]) == [bos] and tokenizer.encode("a")[:1] == [bos]:
        ids = ids[1:]
    parts = [
        str(tokenizer.convert_ids_to_tokens(i)).encode()
        if i >= len(pieces) or pieces[i] == b"\0"
        else pieces[i]
        for i in ids
    ]
    return b"".join(parts).decode("utf-8", "replace")
