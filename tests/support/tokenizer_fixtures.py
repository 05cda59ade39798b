"""Small tokenizers of the published kinds, made on the spot: byte-level BPE with chat tokens, and
sentencepiece models."""

import io
import pathlib
from collections.abc import Sequence

TEXTS = [
    "Let x be 12. Then 3 x = 36.",
    "So the answer is \\boxed{36}.",
    "Add the terms and divide by two.",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z 0 1 2 3 4 5 6 7 8 9",
]


def write_sentencepiece(
    directory: pathlib.Path, model_type: str = "bpe", newlines: Sequence[str] = ()
) -> pathlib.Path:
    """A directory with nothing but tokenizer.model: Llama's kind (a blank before the first word,
    newlines as bytes), or, with `newlines`, Gemma's (they are pieces, and there is no such blank).
    """
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20),
        model_writer=model,
        vocab_size=330 if model_type == "bpe" else 310,
        model_type=model_type,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=not newlines,
        split_digits=True,
        hard_vocab_limit=False,
        user_defined_symbols=list(newlines),
        minloglevel=2,
    )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    return directory


def byte_level(
    specials: Sequence[str], *, bos: str | None, eos: str, merges: Sequence[tuple[str, str]] = ()
):
    """A byte-level BPE over all bytes with these special tokens; `bos`, where given, is put before
    every text."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {
        token: i for i, token in enumerate([*specials, *alphabet, *(a + b for a, b in merges)])
    }
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=list(merges)))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(list(specials))
    if bos is not None:
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=eos,
        pad_token=eos,
        clean_up_tokenization_spaces=False,
    )


# Words with the blank before them, and marks with the newlines after them, as published byte-level
# vocabularies have them.
WORDS = [
    *(" First", " First,", " we", " add", " step", " by", " Then", " Al", "right", ",", " so"),
    *(" Step", "Step", " Dr", " Smith", " has", "\n", "\n\n", " \n", "Then", "First", "We"),
]
WORDS_OF_QWEN = [".\n\n", "!\n\n", ":\n\n", " \n\n", *WORDS]
# How the two kinds take a text apart before they merge.
_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def word_level_bpe(kind: str):
    """A byte-level BPE whose words are whole tokens: of kind "smollm" (digits one by one, then
    GPT-2's pattern) or "qwen" (its pattern, by which newlines merge with the mark before them)."""
    import tokenizers
    from tokenizers import pre_tokenizers

    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    merges: list[tuple[str, str]] = []
    for word in WORDS_OF_QWEN if kind == "qwen" else WORDS:
        spelt = letters.pre_tokenize_str(word)[0][0]
        merges += [(spelt[:n], spelt[n]) for n in range(1, len(spelt))]
    merges = list(dict.fromkeys(merges))
    tokenizer = byte_level(["<|end|>"], bos=None, eos="<|end|>", merges=merges)
    pattern = tokenizers.Regex(_QWEN if kind == "qwen" else _GPT2)
    digits = [] if kind == "qwen" else [pre_tokenizers.Digits(individual_digits=True)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*digits, pre_tokenizers.Split(pattern, "isolated"), letters]
    )
    return tokenizer
