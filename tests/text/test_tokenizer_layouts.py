"""Layouts of published tokenizers for which some releases of transformers choose a wrong class."""

import json
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from scope_jax.text import load_tokenizer

BOS, EOS = "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"
TEXTS = ("So x = 12.", " so  x\n\n\ty \n", "\u00e9\u65e5 2^{10}")


@pytest.mark.parametrize(
    ("model_type", "digits"),
    [("", r"\p{N}{1,3}"), ("llama", r"\p{N}{1,3}"), ("qwen2", r"\p{N}")],
)
def test_a_byte_level_tokenizer_labelled_as_llamas_keeps_its_blanks(tmp_path, model_type, digits):
    """DeepSeek-R1-Distill's directories: tokenizer.json is a byte-level BPE, and
    tokenizer_config.json names LlamaTokenizerFast. transformers 5.21 and older replace its
    pre-tokenizer by sentencepiece's, and every blank is lost."""
    published = byte_level(digits)
    write(tmp_path, published, model_type)
    tokenizer = load_tokenizer(tmp_path)
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == published.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode("a") == published.encode("a").ids


def byte_level(digits: str) -> Tokenizer:
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["So x = 12. Then the sum is 3.\n\n"] * 20, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def write(directory: Path, tokenizer: Tokenizer, model_type: str) -> None:
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": token(BOS),
        "clean_up_tokenization_spaces": False,
        "eos_token": token(EOS),
        "legacy": True,
        "pad_token": token(EOS),
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizerFast",
        "unk_token": None,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    if model_type:
        (directory / "config.json").write_text(json.dumps({"model_type": model_type}))


def token(content: str) -> dict[str, object]:
    switches = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    return {"__type": "AddedToken", "content": content, **switches}
