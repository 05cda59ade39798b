"""A tokenizer tried when it is loaded: does it give the ids that its files stand for?

transformers chooses a class by what tokenizer_config.json and config.json say, and a class may put
its own rules in place of those of tokenizer.json. Releases before 5.22 lose every blank of
DeepSeek-R1-Distill's tokenizers that way, without a word.
"""

import pathlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerBase

# Blanks, newlines, numbers, signs and other scripts. They begin with a letter, since classes differ
# lawfully in the blank before a first word, and hold no run of blanks at the start of a line.
PROBES = (
    "So x = 12.\n\nThen 3 x\ty = 36:\n  4  of 1234567 \u00e9\u65e5 2^{10} \\boxed{1}",
    "Add 7 to it, don't stop; f(x) == 0.\n\n\n- a_b [c] \u00bd \U0001f600 end",
)
# Of the first word with its blank, which `add_prefix_space` may change.
_HEAD = 4
# Ids are places in a table: more than this many no vocabulary has (the largest have 262,144).
MOST_IDS = 1 << 22


def check_tokenizer(tokenizer: "PreTrainedTokenizerBase", directory: pathlib.Path) -> None:
    """Raise ValueError, saying what to do, for a tokenizer that does not give the ids of its own
    tokenizer.json, or loses what those ids hold. Without a tokenizer.json, words must stay apart.
    What a tokenizer does to all texts on purpose (lower case, NFKC, characters that it lacks) is
    none of that."""
    most: object = tokenizer.model_max_length
    if not isinstance(most, int | float) or isinstance(most, bool):
        raise ValueError(
            f"{directory / 'tokenizer_config.json'}: model_max_length = {most!r:.60}: expected a"
            " number of tokens, or null"
        )
    check_ids(tokenizer.get_vocab(), str(directory))
    file = directory / "tokenizer.json"
    own = _own(file) if file.is_file() else None
    for text in PROBES:
        fault = _fault(tokenizer, own, text)
        if fault:
            raise ValueError(
                f"{directory}: transformers reads this tokenizer as {type(tokenizer).__name__},"
                f" which is not what its files say: {fault}; install transformers 5.22 or newer, or"
                " set tokenizer_class in tokenizer_config.json to PreTrainedTokenizerFast"
            )


def _fault(
    tokenizer: "PreTrainedTokenizerBase", own: "tokenizers.Tokenizer | None", text: str
) -> str:
    """What is wrong with the ids of a text, "" where nothing is."""
    try:
        ids = list(tokenizer.encode(text, add_special_tokens=False))
        theirs = ids if own is None else own.encode(text, add_special_tokens=False).ids
    except Exception:  # a vocabulary without an unknown token refuses what it lacks
        return ""
    read_back = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
    kept = read_back == text
    if own is None:
        kept = kept or not _only_blanks_differ(read_back, text)
    else:
        kept = kept or own.decode(theirs, skip_special_tokens=False) != text
    if not kept:
        return f"{text[:12]!r} comes back as {read_back[:12]!r}"
    if _same_after_the_head(ids, theirs) or _is_patched(tokenizer):
        return ""
    place = next((n for n, pair in enumerate(zip(ids, theirs)) if pair[0] != pair[1]), len(ids))
    return f"of {text[:12]!r}... it makes other ids than tokenizer.json, from number {place} on"


def check_ids(vocabulary: dict[str, int], where: str) -> None:
    """Raise ValueError for a vocabulary with an id that no model has a place for."""
    token = max(vocabulary, key=lambda name: vocabulary[name], default=None)
    if token is not None and vocabulary[token] >= MOST_IDS:
        raise ValueError(
            f"{where}: token {token!r} has the id {vocabulary[token]}: expected ids below"
            f" {MOST_IDS}"
        )


def _own(file: pathlib.Path) -> "tokenizers.Tokenizer":
    """tokenizer.json as the `tokenizers` library reads it; a file may have been saved with padding
    or a limit of length, which transformers leaves out too."""
    import tokenizers

    try:
        own = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # it raises nothing but this type
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{file}: no tokenizer of the tokenizers library: {reason}") from error
    own.no_padding()
    own.no_truncation()
    return own


def _same_after_the_head(ids: list[int], theirs: list[int]) -> bool:
    count = len(theirs) - _HEAD
    return ids == theirs or (0 < count <= len(ids) and ids[-count:] == theirs[-count:])


def _is_patched(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether its configuration asks for ids other than those of its file (Mistral's repair)."""
    return bool(getattr(tokenizer, "fix_mistral_regex", False))


def _only_blanks_differ(one: str, other: str) -> bool:
    """Whether two texts are the same but for blanks; runs of them count as one."""
    return "".join(one.split()) == "".join(other.split()) and one.split() != other.split()
