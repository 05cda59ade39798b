"""Chat templates, which are programs that came with a model: what they raise is one line, and they
end in time."""

import ctypes
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What the texts of one call may take, and each of them besides. An ordinary one takes less than a
# thousandth of a second.
SECONDS = 10.0
SECONDS_EACH = 0.01
# More characters no prompt has.
MOST_CHARACTERS = 4_000_000

Turns = list[dict[str, str]]
Result = TypeVar("Result")


class _NoPrompt(Exception):
    """What a template gives that no model can be asked with."""


def chat_prompts(
    tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], system: str | None = None
) -> list[str]:
    """The prompts, each as the user's turn (after `system`, if given) with the assistant's turn
    opened. Where the template refuses a system turn, as Gemma 2's and early Mistrals' do, `system`
    goes before the prompt. Raises ValueError as `chat_text` does."""
    import jinja2

    def filled(user: str, system: str | None = None) -> str:
        turns = [{"role": "system", "content": system}] if system else []
        turns.append({"role": "user", "content": user})
        return _rendered(tokenizer, turns, add_generation_prompt=True)

    def prompt_text(prompt: str) -> str:
        try:
            return filled(prompt, system)
        except jinja2.TemplateError:
            if not system:
                raise
            return filled(f"{system}\n\n{prompt}")

    return _in_time(lambda: [prompt_text(prompt) for prompt in prompts], tokenizer, len(prompts))


def chat_text(tokenizer: "PreTrainedTokenizerBase", turns: Turns) -> str:
    """A conversation in the tokenizer's chat template, no turn opened after it. Raises ValueError
    where the template fails, gives no text, one of more than `MOST_CHARACTERS` or with half of a
    character, or takes longer than `SECONDS`; and for a tokenizer without one."""
    if not tokenizer.chat_template:
        raise ValueError(
            f"{tokenizer.name_or_path or type(tokenizer).__name__}: its tokenizer has no chat"
            " template; add the chat_template of its model, or set chat to false"
        )
    return _in_time(lambda: _rendered(tokenizer, turns, add_generation_prompt=False), tokenizer, 1)


def _rendered(tokenizer: "PreTrainedTokenizerBase", turns: Turns, **settings: Any) -> str:
    text = str(tokenizer.apply_chat_template(turns, tokenize=False, **settings))
    if not text.strip():
        raise _NoPrompt("gives an empty text; it should give the turns and their marks")
    if len(text) > MOST_CHARACTERS:
        raise _NoPrompt(f"gives {len(text)} characters: expected at most {MOST_CHARACTERS}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _NoPrompt(
            f"gives half of a character (\\u{ord(text[error.start]):04x}): expected Unicode text"
        ) from None
    return text


def _in_time(
    work: Callable[[], Result], tokenizer: "PreTrainedTokenizerBase", texts: int
) -> Result:
    """What `work` returns, computed in a thread of its own: a template may loop without end."""
    where = f"{tokenizer.name_or_path or type(tokenizer).__name__}: the tokenizer's chat template"
    result: list[Result] = []
    raised: list[Exception] = []

    def run() -> None:
        try:
            result.append(work())
        except Exception as error:  # a template raises whatever its expressions do
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    seconds = SECONDS + SECONDS_EACH * texts
    thread.join(seconds)
    if thread.is_alive():
        _stop(thread)
        raise ValueError(f"{where}: takes longer than {seconds:.0f} seconds: does it loop?")
    if raised:
        raise ValueError(f"{where}: {_reason(raised[0])}") from raised[0]
    return result[0]


def _reason(error: Exception) -> str:
    """One line; what a template says itself (`raise_exception`) needs no type."""
    import jinja2

    said = " ".join(str(error).split())[:200]
    plain = isinstance(error, jinja2.TemplateError | _NoPrompt)
    return said if plain else f"{type(error).__name__}: {said}"


def _stop(thread: threading.Thread) -> None:
    """Raise SystemExit in a thread that nobody waits for any more, so that it does not take the
    process's time until its end."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit)
    )
