"""Chat templates that fail, or do not end."""

import threading
import time

import pytest
from support.tokenizer_fixtures import byte_level

from scope_jax.text import chat
from scope_jax.text.chat import chat_prompts, chat_text
from scope_jax.text.tokenizers import encode_prompts


@pytest.fixture
def tokenizer():
    return byte_level(["<e>"], bos=None, eos="<e>")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no such luck') }}", "no such luck"),
        ("{{ messages[0]['content'] ", "unexpected end of template"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ messages + 1 }}", "TypeError: "),
        ("{{ range(10**9) | list }}", "OverflowError: "),
        ("{{ messages[7].content.x }}", "has no element 7"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError: "),
        ("{% if false %}{{ messages }}{% endif %}", "gives an empty text"),
        ("{{ '\\n \\n' }}", "gives an empty text"),
        ("{{ messages[0].content }}\ud83d", r"gives half of a character \(\\ud83d\)"),
        ("{{ '\\udc00' }}", r"gives half of a character \(\\udc00\)"),
        ("{{ 'x' * 4000001 }}", "gives 4000001 characters: expected at most 4000000"),
    ],
)
@pytest.mark.parametrize("system", [None, "Box it."])
def test_what_a_template_raises_is_one_line(tokenizer, template, message, system):
    tokenizer.chat_template = template
    tokenizer.name_or_path = "some/folder"
    with pytest.raises(
        ValueError, match=f"some/folder: the tokenizer's chat template: .*{message}"
    ) as raised:
        encode_prompts(tokenizer, ["1+1?"], max_length=99, chat=True, system=system)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "loop",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in 'x' * 99999 %}{{ j }}{% endfor %}{% endfor %}",
    ],
)
def test_a_template_that_does_not_end_is_stopped(tokenizer, monkeypatch, loop):
    monkeypatch.setattr(chat, "SECONDS", 0.3)
    tokenizer.chat_template = loop
    before = set(threading.enumerate())
    start = time.monotonic()
    turns = [{"role": "user", "content": "1"}]
    for ask in (lambda: chat_prompts(tokenizer, ["1"]), lambda: chat_text(tokenizer, turns)):
        with pytest.raises(ValueError, match="takes longer than 0 seconds: does it loop"):
            ask()
    assert time.monotonic() - start < 3
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(10)
    assert not any(thread.is_alive() for thread in left)


def test_ordinary_templates(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    assert chat_prompts(tokenizer, ["1", "2"], "s") == [
        "[system] s\n[user] 1\n[assistant] ",
        "[system] s\n[user] 2\n[assistant] ",
    ]
    assert chat_prompts(tokenizer, []) == []
    assert chat_text(tokenizer, [{"role": "user", "content": "1"}]) == "[user] 1\n"
