"""Prompts that other programs log decoded without their special tokens, written down as those
programs write them."""

import pytest
from support.tokenizer_fixtures import byte_level

from scope_jax.salvage.encode import ALONE, KNOWN, TURNS, Encoder
from scope_jax.salvage.fields import layout_of, read_row
from scope_jax.salvage.settings import Settings
from scope_jax.salvage.turns import ChatTexts

# Of Qwen2.5: a system's turn of its own where none is given.
QWEN = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe helpful.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Of Llama 3: marks around the roles, no newline before them.
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# Of Gemma 2: no system's turn.
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system.') }}{% endif %}"
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# Nothing but marks: no text tells where a turn ends.
MARKS = "{% for m in messages %}<s>{{ m['content'] }}{% endfor %}"


def tokenizer_of(template: str, bos: str | None, *specials: str):
    made = byte_level(specials, bos=bos, eos=specials[-1])
    made.chat_template = template
    return made


@pytest.fixture(scope="module")
def tokenizers():
    return {
        "qwen": tokenizer_of(QWEN, None, "<|im_start|>", "<|endoftext|>", "<|im_end|>"),
        "llama": tokenizer_of(
            LLAMA,
            "<|begin_of_text|>",
            *("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        ),
        "gemma": tokenizer_of(GEMMA, "<bos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        "marks": tokenizer_of(MARKS, None, "<s>", "</s>"),
    }


@pytest.mark.parametrize(
    ("kind", "text", "turns"),
    [
        ("qwen", "system\nBe helpful.\nuser\n1+1?\nassistant\n", ("1+1?", None)),
        ("qwen", "system\nBox it.\nuser\n1+1?\nassistant\n", ("1+1?", "Box it.")),
        (
            "qwen",
            "<|im_start|>system\nBox it.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n"
            "<|im_start|>assistant\n",
            ("1+1?", "Box it."),
        ),
        ("llama", "user\n\n1+1?assistant\n\n", ("1+1?", None)),
        ("llama", "system\n\nBox it.user\n\nHow?\nSo?assistant\n\n", ("How?\nSo?", "Box it.")),
        ("gemma", "user\nBox it.\n\n1+1?\nmodel\n", ("Box it.\n\n1+1?", None)),
        # Something else: several turns, no template, an answer that was begun, one of another date.
        ("qwen", "system\nB\nuser\n1?\nassistant\n2\nuser\n3?\nassistant\n", None),
        ("qwen", "1+1?", None),
        ("qwen", "system\nBe helpful.\nuser\n1+1?\nassistant\n<think>\n\n</think>\n\n", None),
        (
            "llama",
            "user\n\n 1+1?assistant\n\n",
            None,
        ),  # the template would have taken the blank off
        ("gemma", "user\n\nmodel\n", None),
        ("marks", "1+1?", None),
    ],
)
def test_turns_are_read_back(tokenizers, kind, text, turns):
    assert ChatTexts(tokenizers[kind]).turns(text) == turns


def encoded(tokenizer, row, *, chat="auto"):
    settings = Settings("r", "out", "reference", prm="prm", chat=chat)
    end = tokenizer.eos_token_id
    encoder = Encoder(tokenizer, settings.domain, settings, len(tokenizer), (end,), end)
    _, names = layout_of(settings, row)
    return encoder.row(read_row(row, names, 1))


VERL = {
    "input": "system\nBe helpful.\nuser\n1+1?\nassistant\n",
    "output": "It is 3.",
    "gts": "2",
    "score": 0.0,
}
SHOWN = (
    "<|im_start|>system\nBe helpful.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n"
    "<|im_start|>assistant\n"
)


def test_the_policy_is_shown_what_it_was_shown(tokenizers):
    tokenizer = tokenizers["qwen"]
    ids = tokenizer.encode(SHOWN)
    marks = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert [i for i in ids if i in marks] == [marks[0], marks[1]] * 2 + marks[:1]
    trl = {"prompt": VERL["input"], "completion": "It is 3.", "advantage": 0.0, "answer": "2"}
    for row in (VERL, trl, {**trl, "prompt": SHOWN}):
        found = encoded(tokenizer, row)
        assert (found.prompt_ids, found.problem.prompt) == (ids, "1+1?")
        assert found.reading == TURNS
    # Ids are kept as they are; the problem is read out of them.
    found = encoded(tokenizer, {"prompt_ids": ids, "completion": "3", "answer": "2"})
    assert (found.prompt_ids, found.problem.prompt, found.reading) == (ids, "1+1?", KNOWN)
    # A problem that was logged goes before.
    found = encoded(tokenizer, {**VERL, "problem": "one and one"})
    assert (found.prompt_ids, found.problem.prompt) == (ids, "one and one")


def test_what_the_template_does_not_give_is_taken_as_it_stands_and_counted(tokenizers):
    tokenizer = tokenizers["qwen"]
    text = "Question: 1+1?\nAnswer:"
    found = encoded(tokenizer, {**VERL, "input": text})
    assert (found.prompt_ids, found.problem.prompt) == (tokenizer.encode(text), text)
    assert found.reading == ALONE
    assert encoded(tokenizer, {**VERL, "input": text}, chat="off").reading == KNOWN
