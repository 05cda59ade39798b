"""A GGUF file of Llama's architecture as an ordinary Hugging Face directory, without torch.

GGUF keeps weights in blocks of few bits, under names of its own, with the rows of the query and key
projections in another order (rotary pairs side by side, where Hugging Face has halves), and the
tokenizer as lists. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
# How a text is cut before byte pairs are merged, by `tokenizer.ggml.pre`: whether each digit is
# apart. Both cut words as GPT-2 does.
_DIGITS_APART = {"smollm": True, "gpt-2": False}
_CONTROL, _USER_DEFINED = 3, 4  # types of tokens: no text; a text that is never cut
_NEEDED = (
    *("llama.block_count", "llama.context_length", "llama.embedding_length"),
    *("llama.feed_forward_length", "llama.attention.head_count"),
    *("llama.attention.layer_norm_rms_epsilon", "tokenizer.ggml.tokens"),
    *("tokenizer.ggml.token_type", "tokenizer.ggml.merges"),
)


def convert(file: str | Path, directory: str | Path) -> None:
    """Write config.json, model.safetensors (bfloat16), the tokenizer and generation_config.json
    into `directory`, which appears when all of it is there.

    Raises ValueError, with the file's name, for another architecture or tokenizer and for a tensor
    that is not known, for a field that is missing, and where the package `gguf` is not installed.
    """
    reader, file, directory = _open(file), Path(file), Path(directory)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    _check(fields, file)
    fields.setdefault("llama.attention.head_count_kv", fields["llama.attention.head_count"])
    directory.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f"{directory.name}.", dir=directory.parent))
    try:
        tensors = dict(_tensors(reader, fields, file))
        save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
        tied = "lm_head.weight" not in tensors
        rows = len(tensors["model.embed_tokens.weight"])  # may be more than there are tokens
        for name, content in _json_files(fields, tied, rows).items():
            (made / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        _tokenizer(fields).save(str(made / "tokenizer.json"))
        for path in made.iterdir():
            path.chmod(0o644)
        made.chmod(0o755)
        if directory.exists():
            shutil.rmtree(directory)
        made.rename(directory)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _open(file: str | Path) -> Any:
    try:
        import gguf
    except ModuleNotFoundError:
        raise ValueError(
            f"{file}: reading GGUF files needs the package gguf; pip install 'scope_jax[real]'"
        ) from None
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file}: no such file; expected a GGUF file")
    try:
        return gguf.GGUFReader(file)
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{file}: not a GGUF file, or a damaged one ({error})") from None


def _check(fields: Mapping[str, Any], file: Path) -> None:
    for name, known in (
        ("general.architecture", ("llama",)),
        ("tokenizer.ggml.model", ("gpt2",)),
        ("tokenizer.ggml.pre", tuple(_DIGITS_APART)),
    ):
        if fields.get(name) not in known:
            raise ValueError(
                f"{file}: {name} is {fields.get(name)!r}; known: {', '.join(known)}. Take the"
                " model's Hugging Face directory instead"
            )
    for name in _NEEDED:
        if name not in fields:
            raise ValueError(f"{file}: {name} is missing; the file is damaged, or of an odd maker")
    for name in ("llama.attention.head_count", "llama.attention.head_count_kv"):
        if isinstance(fields.get(name), list):
            raise ValueError(f"{file}: {name} differs between layers; one number is needed")
    scaled = [name for name in fields if name.startswith("llama.rope.scaling")]
    if scaled:
        raise ValueError(f"{file}: {scaled[0]}: scaled rotary positions are not read from GGUF")


def _tensors(
    reader: Any, fields: Mapping[str, Any], file: Path
) -> Iterator[tuple[str, np.ndarray]]:
    """(Hugging Face's name, bfloat16 [out, in] or [D]) of each tensor."""
    import gguf

    heads = {
        "attn_q": fields["llama.attention.head_count"],
        "attn_k": fields["llama.attention.head_count_kv"],
    }
    for tensor in reader.tensors:
        match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", tensor.name)
        layer, kind = match.groups() if match else (None, "")
        name = _OUTER.get(kind) if layer is None else _LAYER.get(kind)
        if name is None:
            if tensor.name == "rope_freqs.weight":
                raise ValueError(f"{file}: scaled rotary positions are not read from GGUF")
            raise ValueError(f"{file}: tensor {tensor.name!r} is none of Llama's")
        values = np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
        values = values.reshape([int(size) for size in reversed(tensor.shape)])
        if kind in heads:
            values = halves_from_pairs(values, heads[kind])
        prefix = "" if layer is None else f"model.layers.{layer}."
        yield f"{prefix}{name}.weight", np.ascontiguousarray(values.astype(jnp.bfloat16))


def halves_from_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """[heads H, in] with the rows of each head in the order 0, H/2, 1, H/2 + 1, ... put into the
    order 0, 1, 2, ..."""
    rows, inputs = weight.shape
    by_pair = weight.reshape(heads, rows // heads // 2, 2, inputs)
    return by_pair.swapaxes(1, 2).reshape(rows, inputs)


def _json_files(fields: Mapping[str, Any], tied: bool, rows: int) -> dict[str, dict[str, Any]]:
    """config.json, generation_config.json and tokenizer_config.json."""
    tokens = fields["tokenizer.ggml.tokens"]
    ids = {
        role: fields.get(f"tokenizer.ggml.{key}_token_id")
        for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
    }
    known = {role: number for role, number in ids.items() if number is not None}
    roles = {f"{role}_token_id": number for role, number in known.items() if role != "unk"}
    width, heads = fields["llama.embedding_length"], fields["llama.attention.head_count"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "head_dim": fields.get("llama.rope.dimension_count", width // heads),
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": fields["llama.feed_forward_length"],
        "max_position_embeddings": fields["llama.context_length"],
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": fields["llama.block_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        # A float32 in the file: 9.999999747378752e-06 is 1e-05.
        "rms_norm_eps": float(
            np.format_float_positional(
                np.float32(fields["llama.attention.layer_norm_rms_epsilon"]), unique=True
            )
        ),
        "rope_theta": float(fields.get("llama.rope.freq_base", 10000.0)),
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "vocab_size": rows,
    } | roles
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": fields["llama.context_length"],
    } | {f"{role}_token": tokens[number] for role, number in known.items()}
    if "tokenizer.chat_template" in fields:
        tokenizer["chat_template"] = fields["tokenizer.chat_template"]
    return {
        "config.json": config,
        "generation_config.json": roles,
        "tokenizer_config.json": tokenizer,
    }


def _tokenizer(fields: Mapping[str, Any]) -> Any:
    """Byte-level BPE from the file's tokens and merges."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    cut: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if _DIGITS_APART[fields["tokenizer.ggml.pre"]]:
        cut.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cut)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == _CONTROL
        ]
    )
    tokenizer.add_tokens(
        [
            AddedToken(token, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == _USER_DEFINED
        ]
    )
    return tokenizer
