"""The part of make_goldens.py about model families: what transformers and torch say of the
checkpoints in families_fixture.py, and live checks of what `models.save` writes of them."""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from safetensors.numpy import load_file
from support.families_fixture import (
    FAMILIES,
    LENGTHS,
    NEW,
    VALUE_HEAD,
    family_tokens,
    tensors_of,
    write_checkpoint,
)
from support.fixtures import CHARACTERS
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from scope_jax import models, rollout
from scope_jax.models.weights import flatten
from scope_jax.text.tokenizers import character_tokenizer

INSIDE = np.arange(16)[None] < LENGTHS[:, None]
PROMPTS = (3, 9)
# Greedy continuations are compared token by token: the winner must be this clear for rounding not
# to matter.
MARGIN = 1e-3


def read_torch(directory: Path) -> Any:
    """The causal LM of a directory; every tensor must have found its place."""
    model, info = AutoModelForCausalLM.from_pretrained(
        str(directory), dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    strange = {kind: sorted(names) for kind, names in info.items() if names}
    if strange:
        raise ValueError(f"{directory}: transformers reports {strange}")
    return model.eval()


def torch_logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    """float32[rows inside, V]."""
    inputs = {
        "input_ids": torch.tensor(tokens, dtype=torch.long),
        "attention_mask": torch.tensor(INSIDE.astype(np.int64)),
    }
    with torch.no_grad():
        return model(**inputs).logits.numpy()[INSIDE].astype(np.float32)


def torch_greedy(model: Any, prompt: np.ndarray) -> np.ndarray:
    """NEW tokens, each the largest logit after the whole row so far: no cache, no generation
    settings."""
    row = [int(token) for token in prompt]
    for _ in range(NEW):
        with torch.no_grad():
            best = torch.topk(model(input_ids=torch.tensor([row])).logits[0, -1], 2)
        if float(best.values[0] - best.values[1]) < MARGIN:
            raise ValueError(
                f"the two best tokens after {row} are {best}, too near to each other; take another"
                " seed"
            )
        row.append(int(best.indices[0]))
    return np.array(row[len(prompt) :], np.int32)


def as_published(model: Any) -> dict[str, np.ndarray]:
    """The tensors under the names of files: in memory transformers joins those of all experts."""
    with tempfile.TemporaryDirectory() as place:
        model.save_pretrained(place)
        return load_file(Path(place) / "model.safetensors")


def make_family(name: str, directory: Path) -> dict[str, np.ndarray]:
    """The golden of a family; leaves the checkpoint in `directory`."""
    raw, seed = FAMILIES[name]
    write_checkpoint(directory, raw, {"none": np.zeros(1, np.float32)})
    fresh = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(directory)))
    state = as_published(fresh) if "num_experts" in raw else fresh.state_dict()
    tied = bool(raw.get("tie_word_embeddings", "gemma" in name))
    shapes = {
        key: tuple(value.shape)
        for key, value in state.items()
        if not (tied and key == "lm_head.weight")
    }
    write_checkpoint(directory, raw, tensors_of(raw, shapes, seed))
    model, tokens = read_torch(directory), family_tokens(name)
    made = {
        "shapes": np.array(json.dumps(shapes)),
        "tokens": tokens,
        "logits": torch_logits(model, tokens),
        "greedy": np.stack([torch_greedy(model, tokens[0, :size]) for size in PROMPTS]),
    }
    if name == "qwen2":
        # Skywork-o1-Open-PRM: Linear on the final hidden state, then a sigmoid.
        head = tensors_of(raw, VALUE_HEAD, seed)
        inputs = {
            "input_ids": torch.tensor(tokens, dtype=torch.long),
            "attention_mask": torch.tensor(INSIDE.astype(np.int64)),
        }
        with torch.no_grad():
            hidden = model(**inputs, output_hidden_states=True).hidden_states[-1]
            value = torch.nn.functional.linear(
                hidden, *(torch.tensor(head[key]) for key in VALUE_HEAD)
            )
        made["value"] = torch.sigmoid(value[..., 0]).numpy()[INSIDE]
    return made


def check_family(name: str, made: dict[str, np.ndarray], source: Path) -> list[str]:
    """Ours against transformers, live. Returns what is wrong."""
    wrong = []
    config, params = models.load(source)
    tokenizer = character_tokenizer(CHARACTERS[: config.vocab_size - 4])
    with tempfile.TemporaryDirectory() as place:
        ours, theirs = Path(place) / "ours", Path(place) / "theirs"
        models.save(ours, config, params, tokenizer)
        model = read_torch(ours)
        gap = float(np.abs(torch_logits(model, made["tokens"]) - made["logits"]).max())
        if gap != 0:
            wrong.append(
                f"{name}: what we export gives transformers logits {gap:.1e} away from the"
                " original's"
            )
        text = "12+34=46"
        ids, reader = (
            tokenizer.encode(text),
            AutoTokenizer.from_pretrained(str(ours), local_files_only=True),
        )
        if reader.encode(text) != ids or reader.decode(ids) != text:
            wrong.append(
                f"{name}: AutoTokenizer reads {reader.encode(text)} for {text!r}, we wrote {ids}"
            )
        # transformers' own config.json, and several files.
        model.save_pretrained(theirs, max_shard_size="20kB")
        if not (theirs / "model.safetensors.index.json").is_file():
            wrong.append(f"{name}: transformers wrote one file, several were asked for")
        again, weights = models.load(theirs)
        if again != config:
            wrong.append(
                f"{name}: config.json of transformers is read as {again}, should be {config}"
            )
        if not all(
            np.array_equal(value, flatten(params)[path]) for path, value in flatten(weights).items()
        ):
            wrong.append(f"{name}: weights that transformers saved are read differently")
        if config.num_experts:
            # The names that transformers has in memory, in files.
            model.save_pretrained(theirs / "joined", save_original_format=False)
            _, joined = models.load(theirs / "joined")
            if not all(
                np.array_equal(value, flatten(params)[path])
                for path, value in flatten(joined).items()
            ):
                wrong.append(f"{name}: experts in one tensor are read differently")
        wanted = load_file(source / "model.safetensors")
        found = load_file(ours / "model.safetensors")
        if found.keys() != wanted.keys() or any(
            not np.array_equal(found[key], wanted[key]) for key in wanted
        ):
            wrong.append(f"{name}: import and export change the tensors")
        # generate() of transformers, with its cache.
        prompts = [made["tokens"][0, :size].tolist() for size in PROMPTS]
        rows = rollout.from_prompts(prompts, 1, 16 + NEW)
        spec = rollout.SampleSpec(temperature=0.0, max_new_tokens=NEW, end_ids=())
        for scan_layers in (False, True):
            form = dataclasses.replace(config, scan_layers=scan_layers)
            written = rollout.generate(params, form, rows, jax.random.key(0), spec)
            for number, prompt in enumerate(prompts):
                # Without a mask, generate() takes tokens that equal the pad token for padding.
                row = torch.tensor([prompt])
                settings = {
                    "do_sample": False,
                    "max_new_tokens": NEW,
                    "pad_token_id": 0,
                    "eos_token_id": None,
                }
                with torch.no_grad():
                    out = model.generate(row, attention_mask=torch.ones_like(row), **settings)[
                        0
                    ].tolist()
                mine = np.asarray(written.tokens_BT)[number, : len(prompt) + NEW].tolist()
                if mine != out:
                    wrong.append(
                        f"{name}: greedy continuation {number} is {mine}, transformers writes {out}"
                    )
    print(
        f"{name}: export, {len(PROMPTS)} x {NEW} greedy tokens, config.json and shards of"
        " transformers"
    )
    return wrong
