"""Tokenizers that are read in another way than their files say are refused; all others are not."""

import json
from pathlib import Path

import pytest
import transformers
from support.tokenizer_fixtures import byte_level, write_sentencepiece
from test_tokenizer_layouts import byte_level as deepseek
from test_tokenizer_layouts import write
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from scope_jax.text.probe import MOST_IDS, check_tokenizer
from scope_jax.text.steps import token_bytes
from scope_jax.text.tokenizers import load_tokenizer

CORPUS = [
    "Then the sum of 3 and 4 is 7.",
    "Add 12 to it. So it is.",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z 0 1 2 3 4 5 6 7 8 9",
] * 20
BYTES = [f"<0x{n:02X}>" for n in range(256)]
BLANK = "\u2581"


def trained(tokenizer: Tokenizer, kind, specials: list[str], **more) -> Tokenizer:
    trainer = kind(vocab_size=500, special_tokens=specials, show_progress=False, **more)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def sentencepiece_like(prefix: str) -> Tokenizer:
    """Llama 2's kind (a blank before the first word, by the normaliser or the pre-tokenizer), or
    Gemma's, without one."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    blanks = normalizers.Replace(" ", BLANK)
    parts = [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix == "gemma":
        tokenizer.normalizer = blanks
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        parts.append(decoders.Strip(" ", 1, 0))
        if prefix == "normalizer":
            tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(BLANK), blanks])
        else:
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(BLANK, prefix, False)
    tokenizer.decoder = decoders.Sequence(parts)
    trained(tokenizer, trainers.BpeTrainer, ["<unk>", "<s>", "</s>", *BYTES])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def qwen_like(digits: str = r"\p{N}") -> Tokenizer:
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trained(tokenizer, trainers.BpeTrainer, ["</s>"], initial_alphabet=alphabet)


def bert_like(lower: bool) -> Tokenizer:
    """Splits at signs, knows no newline, and was saved with padding and a limit."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trained(tokenizer, trainers.WordPieceTrainer, ["[UNK]", "[CLS]", "[SEP]"])
    tokenizer.enable_padding(length=64)
    tokenizer.enable_truncation(16)
    return tokenizer


def nfkc() -> Tokenizer:
    """Unigram with NFKC and blanks that run together, as sentencepiece trains by default."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return trained(tokenizer, trainers.UnigramTrainer, ["<unk>"], unk_token="<unk>")


def words() -> Tokenizer:
    """A vocabulary without an unknown token, which raises for what it lacks."""
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.mark.parametrize(
    ("own", "settings", "model_type"),
    [
        (sentencepiece_like("normalizer"), LLAMA | {"tokenizer_class": "LlamaTokenizer"}, "llama"),
        (sentencepiece_like("first"), LLAMA | {"tokenizer_class": "LlamaTokenizerFast"}, ""),
        (
            sentencepiece_like("always"),
            LLAMA | {"tokenizer_class": "LlamaTokenizer", "legacy": False},
            "mistral",
        ),
        # The first word's blank is a setting.
        (
            sentencepiece_like("first"),
            LLAMA
            | {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False, "legacy": False},
            "llama",
        ),
        (sentencepiece_like("gemma"), LLAMA | {"tokenizer_class": "GemmaTokenizer"}, "gemma2"),
        (qwen_like(), {"eos_token": "</s>", "tokenizer_class": "Qwen2Tokenizer"}, "qwen2"),
        (
            qwen_like(),
            {
                "eos_token": "</s>",
                "tokenizer_class": "Qwen2Tokenizer",
                "clean_up_tokenization_spaces": True,
            },
            "qwen3",
        ),
        (bert_like(True), {"tokenizer_class": "BertTokenizer", "do_lower_case": True}, ""),
        (bert_like(False), {"tokenizer_class": "PreTrainedTokenizerFast"}, ""),
        (nfkc(), {"tokenizer_class": "PreTrainedTokenizerFast"}, ""),
        (words(), {"tokenizer_class": "PreTrainedTokenizerFast"}, ""),
        (deepseek(r"\p{N}{1,3}"), {"tokenizer_class": "LlamaTokenizerFast"}, "llama"),
    ],
)
def test_published_kinds_are_read(tmp_path, own, settings, model_type):
    own.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    tokenizer = load_tokenizer(tmp_path)
    if "add_prefix_space" not in settings:
        own.no_padding()
        own.no_truncation()
        assert tokenizer.encode("a b", add_special_tokens=False) == (
            own.encode("a b", add_special_tokens=False).ids
        )


@pytest.mark.parametrize("newlines", [(), ("\n", "\n\n")])
def test_sentencepiece_models_are_read(tmp_path, newlines):
    load_tokenizer(write_sentencepiece(tmp_path, newlines=newlines))


class Older:
    """AutoTokenizer as transformers 5.19 reads DeepSeek-R1-Distill's directories: with the rules
    of sentencepiece in place of the file's."""

    @classmethod
    def from_pretrained(cls, directory, **_):
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(directory)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(BLANK, "first", False)
        return tokenizer


def test_lost_blanks_are_refused(tmp_path, monkeypatch):
    write(tmp_path, deepseek(r"\p{N}{1,3}"), "llama")
    load_tokenizer(tmp_path)
    monkeypatch.setattr(transformers, "AutoTokenizer", Older)
    with pytest.raises(ValueError, match=r"comes back as 'Sox=12.*install transformers") as raised:
        load_tokenizer(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path}: ") and "\n" not in str(raised.value)


def test_other_ids_than_those_of_the_file_are_refused(tmp_path):
    """Numbers of up to three digits as one token, read by a class that takes digits one by one."""
    qwen_like(r"\p{N}{1,3}").save(str(tmp_path / "tokenizer.json"))
    settings = {"eos_token": "</s>", "tokenizer_class": "Qwen2Tokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"Qwen2Tokenizer.*other ids than tokenizer\.json, from"):
        load_tokenizer(tmp_path)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    load_tokenizer(tmp_path)


def test_lost_blanks_without_a_tokenizer_json(tmp_path):
    tokenizer = byte_level(["<e>"], bos=None, eos="<e>")
    check_tokenizer(tokenizer, tmp_path)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(" ", "")
    with pytest.raises(ValueError, match=r"'So x = 12\.\\n\\n' comes back as 'Sox=12"):
        check_tokenizer(tokenizer, tmp_path)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    check_tokenizer(tokenizer, tmp_path)


@pytest.mark.parametrize("most", ["x", [], {}, True, "512"])
def test_a_limit_that_is_no_number(tmp_path, most):
    byte_level(["<e>"], bos=None, eos="<e>").save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"model_max_length": most}))
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: model_max_length = ") as raised:
        load_tokenizer(tmp_path)
    assert "\n" not in str(raised.value)
    for sound in (None, 512, 1e30):
        path.write_text(json.dumps(settings | {"model_max_length": sound}))
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"model": {"type": "none"}}', "\x00", "[" * 9999]
)
def test_a_tokenizer_json_that_is_none(tmp_path, text):
    tokenizer = byte_level(["<e>"], bos=None, eos="<e>")
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(text)
    for read in (load_tokenizer, lambda folder: check_tokenizer(tokenizer, folder)):
        with pytest.raises(ValueError, match=r"^/.*okenizer") as raised:
            read(tmp_path)
        assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"{tmp_path / 'tokenizer.json'}: no tokenizer of the")


@pytest.mark.parametrize("huge", [4_000_000_000, MOST_IDS])
def test_ids_without_bound_are_refused(tmp_path, huge):
    byte_level(["<e>"], bos=None, eos="<e>").save_pretrained(tmp_path)
    path = Path(tmp_path / "tokenizer.json")
    raw = json.loads(path.read_text())
    raw["model"]["vocab"]["huge"] = huge
    path.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=f"token 'huge' has the id {huge}: expected ids below"):
        load_tokenizer(tmp_path)
    unchecked = transformers.AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has the id"):
        token_bytes(unchecked)
