"""Step segmentation on sampled ids, and the table that stops a row after a separator."""

import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tokenizer_fixtures import write_sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from scope_jax.text.boundaries import BLANK_LINE
from scope_jax.text.steps import step_ends, stop_table, token_bytes
from scope_jax.text.tokenizers import load_tokenizer


def _wrap(backend):
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")


@pytest.fixture(scope="module")
def byte_level():
    """Byte-level BPE in which '.\\n\\n', '\\n\\n' and 'x = ' are single tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), (".", "ĊĊ"), ("Ġ", "="), ("x", "Ġ="), ("xĠ=", "Ġ"), ("Ċ", "y")]
    tokens = ["<pad>", "<eos>", *alphabet, *(a + b for a, b in merges)]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken("<think>é", special=False, normalized=False)])
    backend.add_special_tokens(["<turn>"])  # special, yet with no role in the tokenizer
    return _wrap(backend)


@pytest.fixture(scope="module")
def trained_byte_level():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["ab.\n\ncd.\n\n\n\nef\n", "日本.\n\nab", "\n \n\n"] * 3, trainer)
    return _wrap(backend)


@pytest.fixture(scope="module")
def byte_fallback():
    """Like Llama's and Gemma's tokenizers: metaspace pieces, bytes for what has no piece."""
    pieces = [
        "<pad>",
        "<eos>",
        *(f"<0x{n:02X}>" for n in range(256)),
        "▁",
        "a",
        "b",
        ".",
        "▁a",
        "\n",
        "\n\n",
        ".\n\n",
    ]
    merges = [("▁", "a"), ("\n", "\n"), (".", "\n\n")]
    model = models.BPE(
        {p: i for i, p in enumerate(pieces)},
        merges,
        byte_fallback=True,
        fuse_unk=True,
        unk_token="<pad>",
    )
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _wrap(backend)


@pytest.fixture(scope="module")
def unigram():
    pieces = [
        ("<pad>", 0.0),
        ("<eos>", 0.0),
        ("▁", -2.0),
        ("▁ab", -2.5),
        ("a", -3.0),
        ("b", -3.0),
        ("\n", -3.0),
    ]
    backend = Tokenizer(models.Unigram(pieces, 0, False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return _wrap(backend)


@pytest.fixture(scope="module")
def characters():
    alphabet = "abc=;12. \n"
    vocabulary = {"<pad>": 0, "<eos>": 1} | {c: i + 2 for i, c in enumerate(alphabet)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    return _wrap(backend)


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    """Read from a tokenizer.model: newlines are bytes, as in Llama 2 and Mistral."""
    return load_tokenizer(write_sentencepiece(tmp_path_factory.mktemp("sp")))


def _ids(tokenizer, *tokens):
    """Ids of literal tokens, so that the cases do not depend on how text would be encoded."""
    ids = tokenizer.convert_tokens_to_ids(list(tokens))
    assert tokenizer.convert_ids_to_tokens(ids) == list(tokens)
    return ids


def test_merged_separator_closes_the_step_it_stands_in(byte_level):
    ids = _ids(byte_level, "xĠ=Ġ", "1", ".ĊĊ", "y", ".ĊĊ", "z", "<eos>")
    assert step_ends(ids, byte_level) == [3, 5, 7]
    assert step_ends(np.asarray(ids, np.int32), byte_level, "\n\n") == [3, 5, 7]


def test_separator_in_two_tokens_and_inside_a_token(byte_level):
    assert step_ends(_ids(byte_level, "a", "Ċ", "Ċ", "b"), byte_level) == [3, 4]
    # "\ny" completes the separator and carries the first character of the next line: the token is
    # not split, and opens the next step, so that nothing that can be seen of it is kept with "a".
    for separator in ("\n\n", BLANK_LINE, re.compile("\n\n")):
        ids = _ids(byte_level, "a", "Ċ", "Ċy", "b", "c")
        assert step_ends(ids, byte_level, separator) == [2, 5]
        assert step_ends(ids[:3], byte_level, separator) == [2, 3]
        assert step_ends(ids[1:], byte_level, separator) == [4]  # nothing stands before it


def test_blank_lines_belong_to_the_step_before(byte_level):
    assert step_ends(_ids(byte_level, "a", "ĊĊ", "ĊĊ", "Ċ", "b"), byte_level) == [4, 5]
    assert step_ends(_ids(byte_level, "a", "ĊĊ", "Ġ", "Ċ", "Ġ", "b"), byte_level) == [
        4,
        6,
    ]  # indentation of b stays
    assert step_ends(_ids(byte_level, "a", "ĊĊ", "Ċy", "b"), byte_level) == [
        2,
        4,
    ]  # y is no blank line
    assert step_ends(_ids(byte_level, "a", "Ċ", "Ċ", "b", "Ċ", "c"), byte_level, "\n") == [3, 5, 6]


def test_what_cannot_be_seen_makes_no_step(byte_level):
    assert step_ends(_ids(byte_level, "a", "ĊĊ", "Ġ", "ĊĊ", "<eos>"), byte_level) == [5]
    assert step_ends(_ids(byte_level, "ĊĊ", "a", "ĊĊ", "b"), byte_level) == [3, 4]
    assert step_ends(_ids(byte_level, "ĊĊ", "Ġ", "ĊĊ"), byte_level) == [3]
    assert step_ends(_ids(byte_level, "<eos>"), byte_level) == [1]
    assert step_ends([], byte_level) == []


def test_special_token_interrupts_a_separator(byte_level):
    assert step_ends(_ids(byte_level, "a", "Ċ", "<eos>", "Ċ", "b"), byte_level) == [5]
    past_the_vocabulary = [
        *_ids(byte_level, "a", "Ċ"),
        len(byte_level) + 7,
        *_ids(byte_level, "Ċ", "b"),
    ]
    assert step_ends(past_the_vocabulary, byte_level) == [5]


def test_character_spread_over_tokens(byte_level, byte_fallback):
    ids = _ids(byte_level, "æ", "Ĺ", "¥", "ĊĊ", "æ", "ľ", "¬")  # 日, blank line, 本
    assert byte_level.decode(ids) == "日\n\n本"
    assert step_ends(ids, byte_level) == [4, 7]
    assert step_ends(_ids(byte_level, "a") + ids, byte_level, "日") == [4, 8]
    assert step_ends(_ids(byte_level, "a") + ids, byte_level, re.compile("日")) == [4, 8]
    assert step_ends(ids, byte_level, re.compile(r"\n+")) == [4, 7]
    assert step_ends(ids[:2] + ids[3:], byte_level, re.compile(r"\n+")) == [
        3,
        6,
    ]  # a character cut short
    ids = _ids(byte_fallback, "<0xE6>", "<0x97>", "<0xA5>", "<0x0A>", "<0x0A>", "▁a")
    assert step_ends(ids, byte_fallback) == [5, 6]
    assert step_ends(
        _ids(byte_fallback, "▁a", ".\n\n", "\n", "b", "<0x0A>", "\n", "a"), byte_fallback
    ) == [3, 6, 7]


def test_patterns(characters):
    ids = characters.encode("a=1;b=2;\nc=1", add_special_tokens=False)
    assert step_ends(ids, characters, ";") == [4, 8, 12]
    assert step_ends(ids, characters, "\n") == [9, 12]
    assert step_ends(ids, characters, re.compile(r";\s*")) == [4, 9, 12]
    assert step_ends(ids, characters, re.compile(r"(?=[bc]=)")) == [4, 9, 12]
    assert step_ends(ids, characters, re.compile(r"[ab]=\d;")) == [
        12
    ]  # all that was visible is separator
    assert step_ends(characters.encode("a;;b;<eos>"), characters, ";") == [3, 6]


def test_bad_separators(characters):
    for bad in ("", re.compile(b";"), None, 3):
        with pytest.raises(ValueError, match="separator"):
            step_ends([2], characters, bad)
    for bad in ("", re.compile(";"), "a\0"):
        with pytest.raises(ValueError, match="separator"):
            stop_table(characters, bad, 12)
    with pytest.raises(ValueError, match="id -1 at position 1"):
        step_ends([2, -1], characters, ";")


def test_pieces(byte_level, byte_fallback, unigram, characters):
    pieces = token_bytes(byte_level)
    assert len(pieces) == len(byte_level)
    assert [pieces[i] for i in _ids(byte_level, ".ĊĊ", "xĠ=Ġ", "æ", "<eos>")] == [
        b".\n\n",
        b"x = ",
        b"\xe6",
        b"\0",
    ]
    assert sorted(p for p in pieces[2:258]) == [bytes([n]) for n in range(256)]
    assert [pieces[i] for i in _ids(byte_level, "<think>é", "<turn>")] == [
        "<think>é".encode(),
        b"\0",
    ]
    pieces = token_bytes(byte_fallback)
    assert [pieces[i] for i in _ids(byte_fallback, "▁a", "<0xE6>", "\n\n")] == [
        b" a",
        b"\xe6",
        b"\n\n",
    ]
    assert [token_bytes(unigram)[i] for i in _ids(unigram, "▁ab", "\n")] == [b" ab", b"\n"]
    assert token_bytes(characters)[2:5] == [b"a", b"b", b"c"]
    assert step_ends(_ids(unigram, "▁ab", "\n", "a", "b"), unigram, "\n") == [2, 4]


def test_pieces_end_to_end_are_what_the_tokenizer_decodes(
    byte_level, trained_byte_level, byte_fallback, characters
):
    cases = [
        (t, "x = 1.\n\n日本 é\n\n\n \tab.\ny\r\n")
        for t in (byte_level, trained_byte_level, byte_fallback)
    ]
    for tokenizer, text in [*cases, (characters, "a=1;b=2;\nc=1")]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert b"".join(token_bytes(tokenizer)[i] for i in ids) == text.encode()


def test_tokenizer_without_known_pieces():
    backend = Tokenizer(models.WordPiece({"<pad>": 0, "<eos>": 1, "##a": 2}, unk_token="<pad>"))
    backend.decoder = decoders.WordPiece()
    with pytest.raises(ValueError, match=r"decoder \['WordPiece'\]"):
        token_bytes(_wrap(backend))


def test_pieces_follow_a_grown_vocabulary():
    backend = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "a": 2}, unk_token="<pad>"))
    backend.decoder = decoders.Fuse()
    tokenizer = _wrap(backend)
    assert token_bytes(tokenizer) == [b"\0", b"\0", b"a"]
    tokenizer.add_tokens(["\n\n"])
    assert token_bytes(tokenizer) == [b"\0", b"\0", b"a", b"\n\n"]


def test_stop_table_by_hand(byte_level):
    table = stop_table(byte_level, "\n\n", 300)
    assert table.shape == (3, 300) and table.dtype == np.int32
    ids = _ids(byte_level, "a", "Ċ", "ĊĊ", ".ĊĊ", "Ċy", "<eos>")
    assert table[:, ids].tolist() == [[0, 1, 2, 2, 0, 0], [0, 2, 2, 2, 2, 0], [2, 2, 2, 2, 2, 2]]
    assert table[:, len(byte_level) :].tolist() == [[0] * (300 - len(byte_level))] * 2 + [
        [2] * (300 - len(byte_level))
    ]
    # A blank line may have blanks on it: they keep what was matched.
    table = stop_table(byte_level, BLANK_LINE, 300)
    ids = _ids(byte_level, "a", "Ċ", "ĊĊ", ".ĊĊ", "Ċy", "<eos>", "Ġ", "č", "Ġ=")
    assert table[:, ids].tolist() == [
        [0, 1, 2, 2, 0, 0, 0, 0, 0],
        [0, 2, 2, 2, 2, 0, 1, 1, 0],
        [2] * 9,
    ]
    # A separator with a repeated beginning: after "aab" fails at "aaa", two characters are still
    # matched.
    table = stop_table(byte_level, "aab", 260)
    a, b, c = _ids(byte_level, "a", "b", "c")
    assert table[:, [a, b, c]].tolist() == [[1, 0, 0], [2, 0, 0], [2, 3, 0], [3, 3, 3]]
    # One character in three tokens: one state per byte.
    table = stop_table(byte_level, "日", 260)
    assert [table[0, _ids(byte_level, "æ")[0]], table[1, _ids(byte_level, "Ĺ")[0]]] == [1, 2]
    assert table.shape[0] == 4 and table[2, _ids(byte_level, "¥")[0]] == 3


def test_code_fences_are_no_exception(byte_level):
    """A blank line inside of a fence divides like any other: `stop_table` stops there, and PRMs
    were trained so."""
    text = "Run:\n```python\nx = 1\n\nprint(x)\n```\n\nSo 1"
    ids = byte_level.encode(text, add_special_tokens=False)
    ends = step_ends(ids, byte_level)
    steps = [byte_level.decode(ids[a:b]) for a, b in zip([0, *ends], ends)]
    assert steps == ["Run:\n```python\nx = 1\n\n", "print(x)\n```\n\n", "So 1"]
    table, state = stop_table(byte_level, "\n\n", len(byte_level)), 0
    stops = next(n for n, i in enumerate(ids) if (state := table[state, i]) == 2)
    assert stops + 1 == ends[0]


def test_a_sentencepiece_row(sentencepiece):
    ids = _ids(
        sentencepiece,
        "▁x",
        "<0x0A>",
        "<0x0A>",
        "<0x0A>",
        "t",
        "<0x0A>",
        "<0xE6>",
        "<0x97>",
        "<0xA5>",
        "<0x0A>",
        "<0x0A>",
    )
    assert step_ends(ids, sentencepiece) == [4, 11]
    assert step_ends(ids, sentencepiece, "\n") == [4, 6, 11]
    assert step_ends(ids[:8], sentencepiece) == [4, 8]  # cut in the middle of a character
    assert step_ends(ids[:2], sentencepiece) == [2]  # cut in the middle of the separator
    assert step_ends([*ids[:3], sentencepiece.eos_token_id], sentencepiece) == [4]


def test_a_row_cut_inside_of_a_merged_token(byte_level):
    ids = _ids(byte_level, "a", ".ĊĊ", "xĠ=Ġ", "æ", "Ĺ")
    assert step_ends(ids, byte_level) == [2, 5]  # the last character is not complete
    assert step_ends(ids[:4], byte_level) == [2, 4]
    assert step_ends(ids[:2], byte_level) == [2]


@pytest.mark.parametrize(
    "name", ["byte_level", "trained_byte_level", "byte_fallback", "sentencepiece", "characters"]
)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_what_is_kept_is_a_strict_prefix_of_what_was_sampled(name, data, request):
    """Whatever the ids (no tokenizer would write most of these rows): cutting before step e keeps
    whole tokens from the front, fewer than all, more with every step, and what is cut off can be
    seen."""
    tokenizer = request.getfixturevalue(name)
    pieces = token_bytes(tokenizer)
    likely = [i for i, piece in enumerate(pieces) if set(piece) & set(b"\n.`a ")]
    token = st.one_of(st.sampled_from(likely), st.integers(0, len(pieces) + 3))
    ids = data.draw(st.lists(token, min_size=1, max_size=40))
    separator = data.draw(st.sampled_from(["\n\n", "\n", "```"]))
    ends = step_ends(ids, tokenizer, separator)
    kept = [ids[:end] for end in [0, *ends[:-1]]]  # before the error, if it is in step 0, 1, ...
    assert len(kept) == len(ends)
    for number, prefix in enumerate(kept):
        assert prefix == ids[: len(prefix)] and len(prefix) < len(ids)
        assert number == 0 or len(prefix) > len(kept[number - 1])
        # The same steps again, had the row ended there: the segmentation of a kept prefix does not
        # change.
        assert number == 0 or step_ends(prefix, tokenizer, separator) == ends[:number]


@pytest.mark.parametrize(
    "name", ["byte_level", "trained_byte_level", "byte_fallback", "sentencepiece", "characters"]
)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_properties(name, data, request):
    tokenizer = request.getfixturevalue(name)
    separator = data.draw(st.sampled_from(["\n\n", "\n", ".", "\n \n", "aab"]))
    pieces = token_bytes(tokenizer)
    likely = [i for i, piece in enumerate(pieces) if set(piece) & set(b"\n.a ")]
    token = st.one_of(st.sampled_from(likely), st.integers(0, len(pieces) - 1))
    ids = data.draw(st.lists(token, min_size=1, max_size=40))
    ends = step_ends(ids, tokenizer, separator)
    assert ends[-1] == len(ids) and ends[0] > 0 and np.all(np.diff(ends) > 0)
    parts = [ids[a:b] for a, b in zip([0, *ends], ends)]
    assert [i for part in parts for i in part] == ids
    assert ends == step_ends(ids, tokenizer, re.compile(re.escape(separator)))

    # The table accepts where the text first holds the separator; what precedes each other end
    # holds one too.
    mark = separator.encode()
    table, state = stop_table(tokenizer, separator, len(pieces)), 0
    for position, i in enumerate(ids):
        state = table[state, i]
        text = b"".join(pieces[j] for j in ids[: position + 1])
        assert (state == len(mark)) == (mark in text)
        if state == len(mark):
            # The token that completes it opens the next step where only white space of it lies
            # before the separator's end.
            done = text.index(mark) + len(mark)
            head = text[len(text) - len(pieces[i]) : done]
            opens = done < len(text) and head.decode("utf-8", "replace").isspace()
            least = position + (not opens)
            visible = text[:done].replace(mark, b"").strip(b" \n\r\t\0")
            if visible.isascii() and visible.decode().isprintable() and visible:
                # Only blank or unseen tokens may be taken in after the first one.
                assert ends[0] >= least > 0
                later = b"".join(pieces[j] for j in ids[least : ends[0]])
                rest = later.replace(mark, b"").decode("utf-8", "replace")
                assert not any(c.isprintable() and not c.isspace() for c in rest)
            break
    for a, b in zip([0, *ends], ends[:-1]):
        assert mark in b"".join(pieces[j] for j in ids[max(0, a - len(mark)) : b + 1])


def test_a_batch_of_rows_takes_milliseconds(byte_level):
    row = byte_level.encode("x = 1 + 2.\n\nx = 3 * y.\n\nso 12\n\n", add_special_tokens=False)
    row = (row * 3)[:60]
    step_ends(row, byte_level)
    start = time.perf_counter()
    for _ in range(128):
        step_ends(row, byte_level)
    assert time.perf_counter() - start < 0.1  # about 4 ms on an idle machine
