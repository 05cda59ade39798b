"""Tokenizers: a character-level one for the embedded domain, and safe use of any other.

Imports of `transformers` stay inside the functions: it takes seconds, and most of the project does
not need it.
"""

import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from scope_jax import hub
from scope_jax.text.chat import chat_prompts
from scope_jax.text.probe import check_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

END_TOKEN = "<|endoftext|>"
# The step mark of Qwen2.5-Math-PRM: our process reward models are used like that one.
STEP_MARK = "<extra_0>"

# No role marks: a conversation is the prompt followed by the solution, exactly as in training.
_PROMPT_THEN_SOLUTION = (
    "{% for message in messages %}{% if message['role'] in ['user', 'assistant'] %}{{"
    " message['content'] }}{% endif %}{% endfor %}"
)

# Tokens that end a turn in common families, though their tokenizers often name only one of them as
# eos.
_TURN_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|end|>",
    END_TOKEN,
    "<|end_of_text|>",
)


def character_tokenizer(characters: str, *, multiple: int = 8) -> "PreTrainedTokenizerFast":
    """One token per (ASCII) character, losslessly decoded.

    Ids: 0 `<|endoftext|>` (end and padding), 1 `<extra_0>` (step mark), then the characters in
    their order, then `<reserved_i>` up to a multiple of `multiple`. `encode_prompts` raises where
    a character is not among them.

    Built as a byte-level BPE without merges, because transformers 5 reads every directory whose
    config.json says qwen2 as a byte-level BPE, whatever tokenizer_class is written there; a
    word-level model would lose its newline.
    """
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    if not characters or len(set(characters)) != len(characters) or not characters.isascii():
        raise ValueError(
            f"character_tokenizer: {characters!r}: expected ASCII characters without repetition"
        )
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    names = [END_TOKEN, STEP_MARK, *(byte_level.pre_tokenize_str(c)[0][0] for c in characters)]
    reserved = [f"<reserved_{i}>" for i in range(-len(names) % multiple)]
    vocabulary = {name: i for i, name in enumerate(names + reserved)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = byte_level
    backend.decoder = tokenizers.decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END_TOKEN,
        pad_token=END_TOKEN,
        additional_special_tokens=[STEP_MARK, *reserved],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _PROMPT_THEN_SOLUTION
    return tokenizer


def save_tokenizer(tokenizer: "PreTrainedTokenizerBase", directory: str | pathlib.Path) -> None:
    """Save beside a checkpoint so that `AutoTokenizer` gives back the same ids.

    Where config.json's model type would choose another class, transformers mostly follows the one
    named in tokenizer_config.json; the generic name is written, under which releases 4 and 5 both
    read tokenizer.json as it is.
    """
    directory = pathlib.Path(directory)
    tokenizer.save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_tokenizer(directory: str | pathlib.Path) -> "PreTrainedTokenizerBase":
    """`AutoTokenizer` from a directory, or a name of the hub: no code from the checkpoint.

    A directory with sentencepiece's tokenizer.model and no configuration of the tokenizer will do.
    Raises FileNotFoundError where there is none, ValueError where it cannot be read, or is read in
    another way than its files say (`check_tokenizer`).
    """
    directory = hub.local(directory)

    def has(name: str) -> bool:
        return (directory / name).is_file()

    if not any(map(has, ("tokenizer.json", "tokenizer.model", "vocab.json"))):
        raise FileNotFoundError(
            f"{directory}: no tokenizer there: expected tokenizer.json or tokenizer.model"
        )
    from transformers import AutoTokenizer

    def unreadable(error: Exception) -> ValueError:
        reason = (str(error).splitlines() or [""])[0][:300]
        return ValueError(
            f"{directory}: tokenizer cannot be read: {type(error).__name__}: {reason}"
        )

    tokenizer: PreTrainedTokenizerBase
    try:
        if not any(map(has, ("tokenizer.json", "vocab.json", "tokenizer_config.json"))):
            # No class is named there, and transformers' guess gives other ids.
            tokenizer = _from_sentencepiece(directory)
        else:
            tokenizer = AutoTokenizer.from_pretrained(
                str(directory), local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # damaged files surface as many types
        raise unreadable(error) from error
    try:
        check_tokenizer(tokenizer, directory)
    except ValueError:
        raise
    except Exception as error:
        raise unreadable(error) from error
    return tokenizer


def _from_sentencepiece(directory: pathlib.Path) -> "PreTrainedTokenizerFast":
    """A tokenizer from tokenizer.model alone, with the ids that sentencepiece gives, and its
    beginning-of-text token, where it has one, before every text (as Llama's, Mistral's and Gemma's
    classes do)."""
    import sentencepiece
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    model = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
    backend = tokenizer.backend_tokenizer
    if model.encode("a", out_type=str)[0].startswith("\u2581"):
        # transformers 5.23 leaves out the blank that sentencepiece puts before the first word
        # (`add_dummy_prefix`).
        backend.normalizer = tokenizers.normalizers.Sequence(
            [tokenizers.normalizers.Prepend("\u2581"), backend.normalizer]
        )
        backend.decoder = tokenizers.decoders.Sequence(
            [backend.decoder, tokenizers.decoders.Strip(" ", 1, 0)]
        )
    for text in ("a", " so  x = 12.\n\n\ty\n", "\u00e9\u65e5 2^{10}"):
        if tokenizer.encode(text, add_special_tokens=False) != model.encode(text):
            raise ValueError(
                "its normaliser cannot be reproduced; add the tokenizer.json or"
                " tokenizer_config.json of the model"
            )
    if model.bos_id() >= 0:
        bos = model.id_to_piece(model.bos_id())
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, model.bos_id())]
        )
    return tokenizer


def encode_prompts(
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    *,
    max_length: int,
    chat: bool = False,
    system: str | None = None,
) -> tuple[list[list[int]], list[int]]:
    """Ids of each prompt that fits into `max_length` tokens, and the indices of those that do not
    (nothing is cut).

    `chat` puts the prompt into the tokenizer's chat template as the user's turn (after `system`,
    if given) and opens the assistant's; where the template refuses a system turn, `system` goes
    before the prompt. At most one beginning-of-text token, none at the end. Raises ValueError
    where a prompt has a character that the tokenizer lacks, `chat` is asked of a tokenizer without
    template, or the template fails or does not end.
    """
    if chat and not tokenizer.chat_template:
        raise ValueError(
            "encode_prompts: chat=True, but this tokenizer has no chat template: use chat=False"
        )
    texts = chat_prompts(tokenizer, prompts, system) if chat else prompts
    kept, dropped = [], []
    for index, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        ids = list(tokenizer.encode(text, add_special_tokens=not chat))
        # A vocabulary that does not even hold all bytes drops what it lacks without a word.
        if len(tokenizer) < 256 and text not in tokenizer.decode(ids):
            raise ValueError(
                f"encode_prompts: prompt {index} {prompt[:40]!r}: has characters the tokenizer"
                " lacks"
            )
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            ids = ids[1:]
        if (
            not chat
            and eos is not None
            and ids[-1:] == [eos]
            and not text.endswith(tokenizer.eos_token)
        ):
            ids = ids[:-1]
        if 0 < len(ids) <= max_length:
            kept.append(ids)
        else:
            dropped.append(index)
    return kept, dropped


def encode_in_place(
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    *,
    max_length: int,
    chat: bool = False,
    system: str | None = None,
) -> list[list[int] | None]:
    """`encode_prompts` with every prompt in its place: None where it does not fit."""
    kept, dropped = encode_prompts(
        tokenizer, prompts, max_length=max_length, chat=chat, system=system
    )
    fitting, too_long = iter(kept), set(dropped)
    return [None if n in too_long else next(fitting) for n in range(len(prompts))]


def end_ids(
    source: "str | pathlib.Path | PreTrainedTokenizerBase", known: Iterable[int] = ()
) -> tuple[int, ...]:
    """Every id that ends a turn: those `known` to the model, then, sorted, what
    generation_config.json (or config.json) and the tokenizer say besides.

    `source` is a checkpoint directory or a tokenizer (whose own directory is looked at if it has
    one).
    """
    tokenizer: Any = load_tokenizer(source) if isinstance(source, (str, pathlib.Path)) else source
    found = {tokenizer.eos_token_id}
    if tokenizer.name_or_path:
        found.update(_config_end_ids(pathlib.Path(tokenizer.name_or_path)))
    vocabulary = tokenizer.get_vocab()
    found |= {vocabulary[name] for name in _TURN_ENDS if name in vocabulary}
    found.discard(None)
    if not found:
        raise ValueError(
            f"{tokenizer.name_or_path}: no end token: set eos_token_id in generation_config.json"
        )
    return tuple(dict.fromkeys((*known, *sorted(found))))


def _config_end_ids(directory: pathlib.Path) -> list[int]:
    for name in ("generation_config.json", "config.json"):
        path = directory / name
        if not path.is_file():
            continue
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: line {error.lineno}: not JSON: {error.msg}") from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not JSON: {error}") from error
        if not isinstance(raw, dict):
            raise ValueError(f"{path}: holds a {type(raw).__name__}, an object is needed")
        value = raw.get("eos_token_id")
        if value is not None:
            ids = value if isinstance(value, list) else [value]
            if not all(isinstance(id_, int) and not isinstance(id_, bool) for id_ in ids):
                raise ValueError(f"{path}: eos_token_id is {value!r}, whole numbers are needed")
            return ids
    return []
