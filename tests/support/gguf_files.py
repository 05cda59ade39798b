"""GGUF files of a tiny model of Llama's architecture, written by the library of the format."""

import gguf
import jax.numpy as jnp
import numpy as np

D, HEADS, KV_HEADS, HEAD, FFN, LAYERS = 32, 4, 2, 8, 64, 2
WORDS = ["<|end|>", "<|turn|>", "a", "b", "ab", "Ġ", "Ġab", "1", "2"]
TEMPLATE = "{% for m in messages %}<|turn|>{{ m['content'] }}<|end|>{% endfor %}"


def weights(seed=0):
    """Hugging Face's names and layout, with values that bfloat16 holds exactly."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.normal(size=shape).astype(jnp.bfloat16).astype(np.float32)

    found = {"model.embed_tokens.weight": draw(len(WORDS), D), "model.norm.weight": draw(D)}
    for n in range(LAYERS):
        sizes = {
            "input_layernorm": (D,),
            "self_attn.q_proj": (HEADS * HEAD, D),
            "self_attn.k_proj": (KV_HEADS * HEAD, D),
            "self_attn.v_proj": (KV_HEADS * HEAD, D),
            "self_attn.o_proj": (D, HEADS * HEAD),
            "post_attention_layernorm": (D,),
            "mlp.gate_proj": (FFN, D),
            "mlp.up_proj": (FFN, D),
            "mlp.down_proj": (D, FFN),
        }
        found |= {f"model.layers.{n}.{name}.weight": draw(*s) for name, s in sizes.items()}
    return found


def pairs_from_halves(weight, heads):
    """The order of rows that GGUF files have: 0, H/2, 1, H/2 + 1, ..."""
    H = weight.shape[0] // heads
    order = [i // 2 + (i % 2) * (H // 2) for i in range(H)]
    return np.concatenate([weight[h * H : (h + 1) * H][order] for h in range(heads)])


def write(path, tensors, **changes):
    writer = gguf.GGUFWriter(path, changes.pop("architecture", "llama"))
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(changes.pop("pre", "smollm"))
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3] + [1] * (len(WORDS) - 2))
    writer.add_token_merges(["a b", "Ġ ab"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_chat_template(TEMPLATE)
    names = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
    kind = changes.pop("kind", None)
    for name, value in tensors.items():
        stem = name.removesuffix(".weight")
        if stem.startswith("model.layers."):
            _, _, n, rest = stem.split(".", 3)
            if rest.endswith(("q_proj", "k_proj")):
                value = pairs_from_halves(value, HEADS if "q_proj" in rest else KV_HEADS)
            target = f"blk.{n}.{names[rest]}.weight"
        else:
            target = f"{outer.get(stem, stem)}.weight"
        if kind is not None and value.ndim == 2:
            writer.add_tensor(target, gguf.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(target, value)
    assert not changes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
