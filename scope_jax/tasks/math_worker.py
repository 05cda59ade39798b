"""A process that judges answers; started by `worker_pool` as a script, never imported by it. The
protocol is that of `worker_loop`; a request is {"prediction": str, "gold": str}.

It imports math_verify, the folder `rules` and the standard library only: a child that touched JAX
would wait for the accelerator that its parent holds.
"""

import functools
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse


def _beside(name: str) -> Any:
    """A module beside this file, or a package with its `__init__`, without the package around it:
    importing that would bring in JAX."""
    file = Path(__file__).with_name(name)
    folders = [str(file)] if file.is_dir() else None
    file = file / "__init__.py" if folders else file.with_suffix(".py")
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=folders)
    assert spec and spec.loader
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if TYPE_CHECKING:
    from scope_jax.tasks import worker_loop
    from scope_jax.tasks.rules import boxes, readings, symbolic
else:
    worker_loop, _ = _beside("worker_loop"), _beside("rules")
    boxes, readings, symbolic = (
        importlib.import_module(f"rules.{name}") for name in ("boxes", "readings", "symbolic")
    )


def judge(prediction: str, gold: str) -> tuple[bool | None, str]:
    """(verdict, reason where it is None): does the answer in `prediction` equal `gold`?

    The last boxed answer counts; without one, what the text states. An answer that cannot be read
    is wrong; a gold that cannot be read leaves the verdict open, unless the texts are the same.
    """
    prediction, gold = _JUNK.sub("", prediction), _JUNK.sub("", gold).strip()
    if not gold:
        return None, "gold is empty"
    reference = _read_gold(gold)
    boxed = boxes.answer_in_boxes(prediction)
    if boxed is None:
        answers = _stated(prediction)
    else:
        answers = iter(readings.read(boxed, reference=False) if boxed.strip() else ())
    open_question = ""
    for answer in answers:
        try:
            if _equal(reference, answer):
                return True, ""
        except MemoryError:
            open_question = "out of memory"
        except _UnreadableGold:
            open_question = "gold can only be compared as text"
    return (None, open_question) if open_question else (False, "")


class _UnreadableGold(Exception):
    pass


def _equal(reference: "readings.Reading", answer: Any) -> bool:
    """Whether an answer, a reading or a sympy object, equals the reference: by texts and values if
    they tell, else by sympy. Raises _UnreadableGold."""
    if isinstance(answer, readings.Reading):
        told = readings.equal(reference, answer)
        if told is not None:
            return told
    try:
        target = symbolic.parsed(reference.text)
    except MemoryError:
        raise
    except Exception:
        raise _UnreadableGold from None
    try:
        if not isinstance(answer, readings.Reading):
            return symbolic.same(target, symbolic.exact(answer))
        expression = symbolic.parsed(answer.text)
        for number, other in ((reference, expression), (answer, target)):
            if number.decimal and number.value is not None and symbolic.close(number.value, other):
                return True
        return symbolic.same(target, expression)
    except MemoryError:
        raise
    except Exception:
        return False  # an answer that cannot be read, or not be compared with this reference


_DELIMITED = re.compile(r"(?<!\\)\$|\\\(|\\\[")
_FORMULA = re.compile(r"\$[^$]*\$|\\\((?:[^\\]|\\[^)])*\\\)|\\\[(?:[^\\]|\\[^\]])*\\\]")
_PROSE = re.compile(r"[a-zA-Z]{2,} [a-zA-Z]{2,}|[a-zA-Z]{4,}")
_JUNK = re.compile("[\0\ud800-\udfff]")  # NUL and lone surrogates: remains of broken characters
_SPACES = re.compile(r"[^\S\n]+")
_STATED = re.compile(r"answer(?: is)?\s?:?\s?([^\n]{1,200})", re.IGNORECASE)
_SHORT = 200
_TEXT = (
    LatexExtractionConfig(boxed_match_priority=0, normalization_config=symbolic.NORMALIZATION),
    ExprExtractionConfig(),
)


@functools.lru_cache(maxsize=256)  # the rollouts of a group share their gold
def _read_gold(gold: str) -> "readings.Reading":
    """The reading of a reference answer: of its box, of a bare answer as a whole, of the formula
    in a sentence."""
    answer = boxes.answer_in_boxes(gold)
    if answer is None:
        answer = gold
        if _DELIMITED.search(gold) and _PROSE.search(_FORMULA.sub(" ", gold)):
            answer = next((found for found in _found(gold) if isinstance(found, str)), gold)
    return readings.read(answer, reference=True)[0]


def _stated(text: str) -> Iterator[Any]:
    """What a text without a box states: all of it where it is short, what follows the last
    "answer is", and, unless that is a number, what math_verify finds (as its text; as a sympy
    object where the text cannot be read)."""
    text = _SPACES.sub(" ", text).strip()
    if 0 < len(text) <= _SHORT:
        yield from readings.read(text, reference=False)
    statements = _STATED.findall(text)
    if statements:
        stated = readings.read(statements[-1], reference=False)
        yield from stated
        if stated[0].value is not None:
            return
    found = _found(text)
    texts = [answer for answer in found if isinstance(answer, str) and answer.strip()]
    for answer in texts:
        yield from readings.read(answer, reference=False)
    if not any(map(_is_readable, texts)):
        yield from (answer for answer in found if not isinstance(answer, str))


def _found(text: str) -> list[Any]:
    """What math_verify takes for the answer: a sympy object, where it can read one, and the text
    of its last match. Timeouts are the caller's: see `_answer`."""
    try:
        return parse(text, _TEXT, parsing_timeout=None, raise_on_error=True)
    except MemoryError:
        raise
    except Exception:
        return []


def _is_readable(answer: str) -> bool:
    reading = readings.read(answer, reference=False)[0]
    try:
        return reading.value is not None or symbolic.parsed(reading.text) is not None
    except MemoryError:
        raise
    except Exception:
        return False


def main() -> None:
    source, sink = worker_loop.quiet()
    # So that the first item does not pay for the first use of the reader.
    judge("\\boxed{2\\sqrt{x}}", "\\sqrt{4x}")
    worker_loop.limit_memory(int(sys.argv[1]))
    worker_loop.limit_files()
    worker_loop.serve(
        lambda request: judge(request["prediction"], request["gold"]), source, sink, "math_verify"
    )


if __name__ == "__main__":
    main()
