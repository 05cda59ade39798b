"""Tokenizers, solutions and tiny checkpoints in the three published PRM formats, for the tests and
their goldens.

The tokenizers are made by hand, so that every id is known and no version of a trainer can change
it. Each has the merges that a careless encoding stumbles over: a full stop with the newline after
it, two newlines, two spaces.
"""

import dataclasses
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from scope_jax import models
from scope_jax.text import save_tokenizer
from support.fixtures import make_params

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)
# How Qwen2.5 splits a text before merging.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ASCII = [chr(i) for i in range(33, 127)]

# (problem, steps): several steps, one step of two lines, a step that ends with the separator, a
# row of another length.
SOLUTIONS = [
    (
        "What is 2 + 3 - 1?",
        ["Add: 2 + 3 = 5.\n\n", "Take 1 away.\n5 - 1 = 4.\n\n", "So it is \\boxed{4}."],
    ),
    ("Sum 7 and 8.", ["7 + 8 = 14."]),
    (
        "Half of 10?",
        ["10 / 2 = 5.\n", "5 is it, and more words make this row long.\n", "Done.\n", "#### 5"],
    ),
]


def byte_level_tokenizer(begin: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE in the manner of Qwen2.5: ids 0-3 special, 4-259 bytes, then the merges.
    `begin`: with a beginning-of-text token, as Skywork's has."""
    bytes_level = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [
        (".", "Ċ"),
        ("Ċ", "Ċ"),
        ("Ġ", "+"),
        ("Ġ", "-"),
        ("Ð", "º"),
        ("Ð", "¸"),
        ("Ðº", "Ð¸"),
        ("Ġ", "ÐºÐ¸"),
        ("i", "s"),
    ]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>"]
    names = [*special, *bytes_level, *(a + b for a, b in merges)]
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE({name: i for i, name in enumerate(names)}, merges)
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in special]
    )
    ends = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"} | (
        {"bos_token": "<|endoftext|>"} if begin else {}
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **ends
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """BPE in the manner of Mistral's tokenizer.json: a space put in front of each text, bytes for
    what is not in the vocabulary (the newline). Ids: 0 <unk>, 1 <s>, 2 </s>, 3-258 bytes, then
    pieces."""
    merges = [("▁", "▁"), ("▁", "к"), ("▁к", "и"), ("к", "и"), ("▁", "+"), ("▁", "-"), ("i", "s")]
    names = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        "▁",
        *ASCII,
        "к",
        "и",
        *(a + b for a, b in merges),
    ]
    vocabulary = {name: i for i, name in enumerate(names)}
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    backend.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in special.values()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **special
    )


def _config(size: int, **more) -> models.ModelConfig:
    base = models.ModelConfig(
        size, 32, 2, 4, 2, 8, 48, rope_theta=10000.0, norm_eps=1e-5, max_positions=256, end_ids=(2,)
    )
    return dataclasses.replace(base, **more)


# format -> (tokenizer, config, seed of the weights); the layouts of the published directories,
# tiny.
CHECKPOINTS = {
    "qwen": lambda: (byte_level_tokenizer(), _config(272, head="prm"), 11),
    "math_shepherd": lambda: (metaspace_tokenizer(), _config(368, model_type="mistral"), 12),
    "skywork": lambda: (byte_level_tokenizer(begin=True), _config(272, head="value"), 13),
}


def write_checkpoint(name: str, directory: Path) -> None:
    """The tiny checkpoint of one format as a Hugging Face directory."""
    tokenizer, config, seed = CHECKPOINTS[name]()
    models.save(directory, config, make_params(config, seed))
    save_tokenizer(tokenizer, directory)
