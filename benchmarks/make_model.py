"""Writes random Qwen2 checkpoints (config.json, model.safetensors, byte-level tokenizer) for the
benchmarks.

numpy and safetensors only. The same directory loads in scope_jax, in transformers and in Tunix.

    python benchmarks/make_model.py A /path/to/model_a
    python benchmarks/make_model.py B /path/to/model_b
"""

import argparse
import json
from pathlib import Path

import numpy as np
from lengths import SPECIAL_TOKENS
from safetensors.numpy import save_file

# Embeddings are tied. A has 1.05M parameters, B 32.5M.
MODELS = {
    "A": {"hidden": 128, "layers": 4, "heads": 4, "kv_heads": 2, "ffn": 512, "vocab": 512},
    "B": {"hidden": 512, "layers": 8, "heads": 8, "kv_heads": 2, "ffn": 2048, "vocab": 4096},
}


def write_model(name: str, directory: str, seed: int = 0, positions: int = 2048) -> int:
    """Writes model `name` (a key of MODELS), float32, into `directory`; returns the number of
    parameters."""
    if name not in MODELS:
        raise ValueError(f"make_model: unknown model {name!r}; one of {', '.join(MODELS)}")
    size = MODELS[name]
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    weights = random_weights(size, seed)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    _write_json(path / "config.json", _config(size, positions))
    _write_json(
        path / "generation_config.json",
        {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0},
    )
    _write_json(path / "tokenizer.json", _tokenizer(size["vocab"]))
    _write_json(
        path / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "pad_token": SPECIAL_TOKENS[0],
            "eos_token": SPECIAL_TOKENS[1],
            "unk_token": SPECIAL_TOKENS[2],
            "clean_up_tokenization_spaces": False,
            "model_max_length": positions,
        },
    )
    return sum(w.size for w in weights.values())


def random_weights(size: dict[str, int], seed: int) -> dict[str, np.ndarray]:
    """float32 weights under Hugging Face names, [out, in]; normal with deviation 0.02, norms 1."""
    rng = np.random.default_rng(seed)
    d, f = size["hidden"], size["ffn"]
    kv = d // size["heads"] * size["kv_heads"]

    def normal(*shape: int) -> np.ndarray:
        return 0.02 * rng.standard_normal(shape, dtype=np.float32)

    weights = {
        "model.embed_tokens.weight": normal(size["vocab"], d),
        "model.norm.weight": np.ones(d, np.float32),
    }
    for layer in range(size["layers"]):
        prefix = f"model.layers.{layer}."
        weights[prefix + "input_layernorm.weight"] = np.ones(d, np.float32)
        weights[prefix + "post_attention_layernorm.weight"] = np.ones(d, np.float32)
        for name, out in (("q", d), ("k", kv), ("v", kv)):
            weights[prefix + f"self_attn.{name}_proj.weight"] = normal(out, d)
            weights[prefix + f"self_attn.{name}_proj.bias"] = normal(out)
        weights[prefix + "self_attn.o_proj.weight"] = normal(d, d)
        weights[prefix + "mlp.gate_proj.weight"] = normal(f, d)
        weights[prefix + "mlp.up_proj.weight"] = normal(f, d)
        weights[prefix + "mlp.down_proj.weight"] = normal(d, f)
    return weights


def _config(size: dict[str, int], positions: int) -> dict:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": size["hidden"],
        "intermediate_size": size["ffn"],
        "num_hidden_layers": size["layers"],
        "num_attention_heads": size["heads"],
        "num_key_value_heads": size["kv_heads"],
        "vocab_size": size["vocab"],
        "max_position_embeddings": positions,
        "max_window_layers": size["layers"],
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "sliding_window": None,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "torch_dtype": "float32",
    }


def _tokenizer(vocab: int) -> dict:
    """Byte-level BPE without merges: one token for each byte of the text; the ids after the bytes
    are never encoded.

    The type matters: transformers picks the tokenizer class from the model type and rebuilds a
    Qwen2 tokenizer as byte-level BPE from its vocabulary and merges, whatever else this file says.
    """
    symbols = _byte_symbols()
    tokens = [*SPECIAL_TOKENS, *symbols]
    pairs = (a + b for a in symbols for b in symbols)
    tokens += [next(pairs) for _ in range(vocab - len(tokens))]
    flags = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, **flags} for i, token in enumerate(SPECIAL_TOKENS)
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [],
        },
    }


def _byte_symbols() -> list[str]:
    """The printable character that stands for each byte in byte-level BPE files, by byte value.

    Printable Latin-1 characters stand for themselves, the others for the code points from 256 on,
    in order.
    """
    itself = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte if byte in itself else next(others)) for byte in range(256)]


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write a random Qwen2 checkpoint for the benchmarks."
    )
    parser.add_argument("name", choices=sorted(MODELS))
    parser.add_argument("directory")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(f"{args.directory}: {write_model(args.name, args.directory, args.seed):,} parameters")


if __name__ == "__main__":
    main()
