"""What divides a text: named boundaries case by case, and the tokens that a boundary falls to."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tokenizer_fixtures import word_level_bpe, write_sentencepiece

from scope_jax.tasks.mathematics import Mathematics
from scope_jax.text import BLANK_LINE, SENTENCES, divider, load_tokenizer, split_steps, step_ends
from scope_jax.text.boundaries import NAMED, NUMBERED_STEPS
from scope_jax.text.steps import can_stop, stop_table, token_bytes

RAW_SENTENCES = re.compile(r"(?<=[.!?])\s+")
RAW_STEPS = re.compile(r"(?=Step \d+:)")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    return {
        "smollm": word_level_bpe("smollm"),
        "qwen": word_level_bpe("qwen"),
        "sentencepiece": load_tokenizer(write_sentencepiece(tmp_path_factory.mktemp("sp"))),
    }


# ---- texts. "|" is where a text is divided


SENTENCE_CASES = [
    "We add. |Then we go! |Is it 7? |So 7.",
    "We add.\nThen we go.|",  # replaced below: one line each
    "It is 3.5 m. |Then 0.75. |So $1.50 in all.",
    "1. We add. |2. We divide. |3. Done.",
    "1. We add.\n|2) We divide.\n|  3. We go on.\n\n|10. Done.",
    "1) We add. |2) We divide.",
    "a. We add.\n|b. We divide.",
    "- 1. We add.\n|**2. We divide.**\n|### 3. Done",
    "Step 1. We add. |Step 2. We divide. |Step 3: Done.",
    "The answer is 7. |Then 8. |So 9.",  # numbers at the end of a sentence are none of a list
    "Use a rule, e.g. Ohm's, i.e. Volt by Ampere. |Then go.",
    "Dr. Smith and Mr. Jones met Mrs. Lee, Ms. Ray and Prof. Li. |Then St. John came.",
    "It weighs approx. 5 kg vs. 7 kg. |See Fig. 3 and Eq. 4, cf. Ex. 2.",
    "The U.S. team beat the U.K. team. |J. K. Rowling and John F. Kennedy saw J.R.R. Tolkien.",
    "He lives in the U.S. |The total is 5. |He left at 5 p.m. |She came at 9:15 a.m. with 2.",
    "Take No. 5. |Is it so? |No. |Then it is 5 ft. 3 in. long. |Then go.",
    "They meet at point D. |Since AB = 5 the angle is B. |Then we add.",
    "So 5! = 120. |There are 5! ways and 3! * 2! more! |Then stop.",
    "Take 1, 2, 3, ... 10. |Add 1 + 2 + ... + n. |Hm... |Then wait. it goes on.",
    'He said "Stop." |Then (so it is.) |Now **done.** |It is $x = 5.$ |So \\(y.\\) |End',
    "x = 3. |y is 4. |So $z$ is 7. |\\boxed{7}. |[End]",
    "etc. |Then apples, pears etc. are left.",
    "### Solution\n|We have:\n3 + 4 = 7\n|Total apples = 7\n|Total pears = 8\n",
    "We have:\n2x + 3 = 15\n|2x = 12\n|x = 6\n|So 6.",
    "The sum is 3 +\nFour and, of course,\nFive. |End",  # lines that are not over
    "We add\nthem up.\n|So it is.",  # a line that was wrapped
    "So\n\\[\nA = 3. B = 4\nC\n\\]\nis it. |Then $$\nA.\nB\n$$ |End".replace(" |End", " End"),
    "\\begin{align*}\nA = 1. B\\\\\nC\n\\end{align*}\n|So it is. |End",
    "$$ never closed. Then\n\n|We go. |End",
    "First.\r\n|Then.\r\n\r\n|So.\n \n|End.\n\n\n|  Indented.",
    "首先，我们有。|然后！|所以 x = 3。 |完",
    "",
    "7",
    " \n",
]
SENTENCE_CASES[1] = "We add.\n|Then we go.\n"


@pytest.mark.parametrize("case", SENTENCE_CASES)
def test_sentences(case):
    text = case.replace("|", "")
    assert split_steps(text, SENTENCES) == [part for part in case.split("|") if part]


@pytest.mark.parametrize(
    "case",
    [
        "Step 1: We add. |Step 2: We go, as in Step 1, on.\n\n|Step 3: End",
        "**Step 1:** a\n|**Step 2:** b\n|## Step 3\nc 3.5\n3.5 d",
        "We have:\n|1. a\n   b\n|2. c\n\n|  3) d\n|- 4. e\n|10. **f**",
        "x is\n2.5 and step by step: 7. Then 8.",
    ],
)
def test_numbered_steps(case):
    assert split_steps(case.replace("|", ""), NUMBERED_STEPS) == case.split("|")


def test_blank_lines_of_every_system():
    text = "a\n\nb\n \t\nc\r\n\r\nd\r\n \r\ne\nf\n\n\ng"
    parts = ["a\n\n", "b\n \t\n", "c\r\n\r\n", "d\r\n \r\n", "e\nf\n\n", "\ng"]
    assert split_steps(text, BLANK_LINE) == parts
    assert split_steps("a\n\nb", "\n\n") == split_steps("a\n\nb", BLANK_LINE)


def test_what_divides_a_domain():
    assert Mathematics().divider is divider("\n\n") is BLANK_LINE
    assert Mathematics(separator="\n").divider == divider("\n") == "\n"
    assert Mathematics(boundary="sentences").divider is SENTENCES
    assert Mathematics(boundary="lines").divider == "\n"
    assert Mathematics(boundary="blank_lines", separator=";").divider is BLANK_LINE
    assert Mathematics(boundary=r"a|b").divider == re.compile("a|b")
    assert [name for name in NAMED if can_stop(NAMED[name])] == ["lines", "blank_lines"]
    with pytest.raises(ValueError, match=r"boundary 'sentence': unknown name; .* 'sentences'"):
        Mathematics(boundary="sentence")


@pytest.mark.parametrize("boundary", [SENTENCES, NUMBERED_STEPS, BLANK_LINE])
@pytest.mark.parametrize(
    "piece",
    [
        *(".", ". ", "! ? ", ".'", ".')", "\n", " \n", "\n ", " ", "Mr. ", "1. ", "\n1. ", "$$"),
        *(
            "\\[",
            "\\begin{a}",
            "=",
            "a=1\n",
            "A\n",
            "。",
            "。」",
            "Step 1",
            " Step 1:",
            "...",
            "\r",
        ),
    ],
)
def test_any_text_is_divided_in_linear_time(piece, boundary):
    text = piece * ((1 << 18) // len(piece))
    start = time.monotonic()
    for _ in boundary.finditer(text):
        pass
    assert time.monotonic() - start < 4  # 0.5 s at most on an idle core


# ---- tokens


def pieces(tokenizer, text: str, separator) -> list[list[str]]:
    """The tokens of a text, step by step."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    known = token_bytes(tokenizer)
    assert b"".join(known[i] for i in ids).decode().strip() == text.strip()
    ends = step_ends(ids, tokenizer, separator)
    return [[known[i].decode() for i in ids[a:b]] for a, b in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize("separator", [SENTENCES, RAW_SENTENCES])
@pytest.mark.parametrize("kind", ["smollm", "qwen"])
def test_the_blank_goes_with_the_next_sentences_word(tokenizers, kind, separator):
    assert pieces(
        tokenizers[kind], "We add step by step. First, we add. Alright, so", separator
    ) == [
        ["We", " add", " step", " by", " step", "."],
        [" First", ",", " we", " add", "."],
        [" Al", "right", ",", " so"],
    ]


def test_the_blank_goes_with_the_next_word_of_sentencepiece(tokenizers):
    tokenizer = tokenizers["sentencepiece"]
    assert pieces(tokenizer, "Add the. Then 3 x.", SENTENCES) == [
        [" ", "Ad", "d", " the", "."],
        [" T", "he", "n", " ", "3", " x", "."],
    ]
    # A blank that is a token of its own is white space behind the step, and closes it.
    assert pieces(tokenizer, "Add. So", SENTENCES) == [[" ", "Ad", "d", ".", " "], ["So"]]


@pytest.mark.parametrize("separator", [NUMBERED_STEPS, RAW_STEPS])
@pytest.mark.parametrize("kind", ["smollm", "qwen"])
def test_a_look_ahead_inside_of_a_token(tokenizers, kind, separator):
    found = pieces(tokenizers[kind], "Step 1: we add. Step 2: we", separator)
    assert found == [
        ["Step", " ", "1", ":", " we", " add", "."],
        [" Step", " ", "2", ":", " we"],
    ]


def test_newlines_stay_with_the_step_that_they_end(tokenizers):
    text = "We add.\n\nThen we add. \n\nFirst"
    small, qwen = ("smollm", "qwen")
    for separator in (BLANK_LINE, "\n\n", SENTENCES):
        assert pieces(tokenizers[qwen], text, separator) == [
            ["We", " add", ".\n\n"],
            ["Then", " we", " add", ".", " \n\n"],
            ["First"],
        ]
        assert pieces(tokenizers[small], text, separator) == [
            ["We", " add", ".", "\n", "\n"],
            ["Then", " we", " add", ".", " \n", "\n"],
            ["First"],
        ]


@pytest.mark.parametrize("kind", ["smollm", "qwen", "sentencepiece"])
def test_blank_lines_with_something_on_them(tokenizers, kind):
    for blank in ("\r\n\r\n", "\n \n", "\n\t\n"):
        found = pieces(tokenizers[kind], f"We add{blank}Then", Mathematics().divider)
        assert ["".join(step).strip(" ") for step in found] == [f"We add{blank}", "Then"]


def test_a_token_that_holds_a_boundary_and_both_sides(tokenizers):
    """ " add" and "." as one token with the next word: it cannot be split, and closes its step."""
    tokenizer = word_level_bpe("smollm")
    tokenizer.add_tokens(["\n\nThen", ". Then"])
    ids = tokenizer.convert_tokens_to_ids(["We", ". Then", "\n\nThen", "We"])
    assert step_ends(ids, tokenizer, SENTENCES) == [2, 4]
    assert step_ends(ids, tokenizer, BLANK_LINE) == [2, 4]  # white space alone before the word
    # A row is stopped where the separator is complete, so behind the token that opens the next.
    table, state = stop_table(tokenizer, BLANK_LINE, len(tokenizer)), 0
    states = [state := int(table[state, i]) for i in ids]
    assert states == [0, 0, 2, 2]


WORDS = [
    "We add",
    "First, we",
    "Alright",
    "Step 2: so",
    "3.5",
    "Dr. Smith",
    "1. We",
    "has 12",
    "U.S.",
]
MARKS = [". ", ".\n", ".\n\n", "\n\n", "! ", "? ", " \n\n", "\r\n\r\n", "\n \n", ", ", " ", "\n"]


@pytest.mark.parametrize("name", [*NAMED, RAW_SENTENCES.pattern, RAW_STEPS.pattern])
@pytest.mark.parametrize("kind", ["smollm", "qwen", "sentencepiece"])
@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(MARKS)), max_size=8))
def test_rows_and_texts_are_divided_alike(tokenizers, kind, name, words):
    """The steps of the ids are those of the text, but for the white space between them."""
    text = "".join(word + mark for word, mark in words)
    separator = divider("\n\n", name)
    steps = ["".join(step) for step in pieces(tokenizers[kind], text, separator)]
    assert "".join(steps).strip() == text.strip()
    wanted = [part.strip() for part in split_steps(text, separator) if part.strip()]
    assert [step.strip() for step in steps if step.strip()] == wanted
    # What is kept before a step ends with that step's last visible token.
    if can_stop(separator) and len(steps) > 1:
        tokenizer = tokenizers[kind]
        ids, table, state = tokenizer.encode(text, add_special_tokens=False), None, 0
        table = stop_table(tokenizer, separator, len(tokenizer))
        stops = next(n for n, i in enumerate(ids) if (state := table[state, i]) == len(table) - 1)
        known = token_bytes(tokenizer)
        written = b"".join(known[i] for i in ids[: stops + 1]).decode().strip()
        assert written == wanted[0]
