"""Makes the goldens of tests/models/test_models.py and tests/models/test_families.py with torch and
transformers, an implementation that shares no code with ours.

    python tests/goldens/make_goldens.py            write the .npz files beside this script
    python tests/goldens/make_goldens.py --check    make them afresh and compare with the files

--check then looks at what `models.save` writes, live: greedy continuations, tokenizer, PRM.

The weights come from fixtures.py and reach torch through a directory that `models.save` wrote;
those of the families come from families_fixture.py and reach both through a directory that neither
wrote. Needs the extra [oracle].
"""

import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"

import jax  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from family_goldens import INSIDE, check_family, make_family  # noqa: E402
from peft import PeftModel  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402
from support.families_fixture import FAMILIES, LENGTHS  # noqa: E402
from support.fixtures import CHARACTERS, TIED, UNTIED, make_params, ragged_tokens  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Model  # noqa: E402
from transformers.utils import logging  # noqa: E402

from scope_jax import models, rollout  # noqa: E402
from scope_jax.text.tokenizers import character_tokenizer  # noqa: E402

# name -> (config, seed of weights and tokens)
CASES = {"tied": (TIED, 1), "untied": (UNTIED, 2), "prm": (UNTIED.with_head("prm"), 4)}
TOLERANCE = 1e-4
NEW = 32


def build(name: str, directory: Path) -> dict[str, np.ndarray]:
    """The directory of one case, and what torch computes from it: logits, or probabilities of
    class 1."""
    config, seed = CASES[name]
    models.save(directory, config, make_params(config, seed))
    tokens, length = ragged_tokens(config, seed)
    inside = np.arange(tokens.shape[1])[None] < length[:, None]
    inputs = {
        "input_ids": torch.tensor(tokens, dtype=torch.long),
        "attention_mask": torch.tensor(inside.astype(np.int64)),
    }
    with torch.no_grad():
        if config.head == "lm":
            model = AutoModelForCausalLM.from_pretrained(
                str(directory), dtype=torch.float32, attn_implementation="eager"
            )
            out = model(**inputs).logits.numpy()
            return {
                "tokens": tokens,
                "length": length,
                "logits": np.where(inside[..., None], out, 0).astype(np.float32),
            }
        trunk, info = Qwen2Model.from_pretrained(
            str(directory),
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
        )
        if info["missing_keys"]:
            raise ValueError(
                f"{directory}: Qwen2Model misses {sorted(info['missing_keys'])}; the trunk must be"
                " whole"
            )
        # The head as the model card of Qwen2.5-Math-PRM describes it: Linear, ReLU, Linear, at
        # every position.
        tensors = {
            key: torch.tensor(value)
            for key, value in load_file(directory / "model.safetensors").items()
        }
        head = torch.nn.Sequential(
            torch.nn.Linear(config.hidden_size, config.hidden_size),
            torch.nn.ReLU(),
            torch.nn.Linear(config.hidden_size, 2),
        )
        head.load_state_dict(
            {
                key.removeprefix("score."): value
                for key, value in tensors.items()
                if key.startswith("score.")
            }
        )
        good = torch.softmax(head(trunk(**inputs).last_hidden_state).float(), dim=-1)[
            ..., 1
        ].numpy()
    return {
        "tokens": tokens,
        "length": length,
        "probability": np.where(inside, good, 0).astype(np.float32),
    }


def check_ours(name: str, directory: Path, made: dict[str, np.ndarray]) -> float:
    """Largest difference between torch and our own model loaded from the same directory."""
    config, params = models.load(directory)
    forward = models.logits if config.head == "lm" else models.good_step_probability
    ours = jax.jit(forward, static_argnums=1)(params, config, made["tokens"], made["length"])
    return float(
        np.abs(np.asarray(ours) - made["logits" if config.head == "lm" else "probability"]).max()
    )


def check_generation(name: str, directory: Path) -> list[str]:
    """Greedy continuation and tokenizer of a saved directory, ours against transformers. Returns
    what is wrong."""
    config, seed = CASES[name]
    tokenizer = character_tokenizer(CHARACTERS)
    models.save(directory, config, make_params(config, seed), tokenizer)
    text = "12+34=46\n\nabc 7*8"
    ids, theirs = (
        tokenizer.encode(text),
        AutoTokenizer.from_pretrained(str(directory), local_files_only=True),
    )
    wrong = []
    if theirs.encode(text) != ids or theirs.decode(ids) != text or len(theirs) != len(tokenizer):
        wrong.append(
            f"{name}: AutoTokenizer reads {theirs.encode(text)} for {text!r}, we wrote {ids}"
        )
    model = AutoModelForCausalLM.from_pretrained(
        str(directory), dtype=torch.float32, attn_implementation="eager"
    )
    ends = model.generation_config.eos_token_id
    if list(config.end_ids) != (ends if isinstance(ends, list) else [ends]):
        wrong.append(f"{name}: transformers reads end tokens {ends}, we wrote {config.end_ids}")
    # And the other way: what transformers saves, in several files, comes back to us bit by bit.
    model.save_pretrained(directory / "theirs", max_shard_size="30kB")
    if not (directory / "theirs" / "model.safetensors.index.json").is_file():
        wrong.append(f"{name}: transformers wrote one file, several were asked for")
    if models.load(directory / "theirs")[0] != config:
        wrong.append(
            f"{name}: config.json of transformers is read as"
            f" {models.load(directory / 'theirs')[0]}, should be {config}"
        )
    same = jax.tree.map(
        np.array_equal, models.load(directory / "theirs")[1], models.load(directory)[1]
    )
    if not all(jax.tree.leaves(same)):
        wrong.append(f"{name}: weights saved by transformers differ from ours: {same}")
    prompts = [ids, ids[:3], ids[:1]]
    spec = rollout.SampleSpec(temperature=0.0, max_new_tokens=NEW, end_ids=config.end_ids)
    rows = rollout.from_prompts(prompts, 1, len(ids) + NEW)
    ours = rollout.generate(*reversed(models.load(directory)), rows, jax.random.key(0), spec)
    for number, prompt in enumerate(prompts):
        with torch.no_grad():
            out = model.generate(
                torch.tensor([prompt]), do_sample=False, max_new_tokens=NEW, pad_token_id=0
            )[0].tolist()
        found = np.asarray(ours.tokens_BT)[number, : int(ours.length_B[number])].tolist()
        print(f"{name}: {len(found) - len(prompt)} greedy tokens")
        if found != out:
            wrong.append(
                f"{name}: greedy continuation {number} is {found}, transformers writes {out}"
            )
    return wrong


def compare(path: Path, made: dict[str, np.ndarray]) -> float:
    """Largest difference from the file."""
    kept = dict(np.load(path, allow_pickle=False))
    if made.keys() != kept.keys() or any(made[key].shape != kept[key].shape for key in made):
        return np.inf
    gaps = [
        (
            np.abs(made[key] - kept[key]).max()
            if made[key].dtype.kind != "U"
            else made[key] != kept[key]
        )
        for key in made
    ]
    return float(max(gaps))


def check_adapters(name: str, directory: Path) -> list[str]:
    """Adapters as PEFT applies them, and merged and exported, against our model with the adapters
    attached."""
    config, seed = CASES[name]
    params, spec = (
        make_params(config, seed),
        models.LoraSpec(rank=3, alpha=6.0, targets=("query", "value", "output", "down")),
    )
    stream = np.random.RandomState(seed)
    lora = models.init_lora(config, spec, jax.random.key(0))
    lora = jax.tree.map(lambda x: (0.3 * stream.standard_normal(x.shape)).astype(np.float32), lora)
    models.save(directory / "base", config, params)
    models.save_lora(directory / "adapter", config, lora, spec, base=str(directory / "base"))
    models.save(directory / "merged", config, models.merge(config, params, lora, spec))
    tokens, length = ragged_tokens(config, seed)
    ours = np.asarray(
        jax.jit(models.logits, static_argnums=1)(
            models.attach(params, lora, spec), config, tokens, length
        )
    )[0]
    plain = {"dtype": torch.float32, "attn_implementation": "eager"}
    base = AutoModelForCausalLM.from_pretrained(str(directory / "base"), **plain)
    theirs = {
        "PEFT's model": PeftModel.from_pretrained(base, str(directory / "adapter")),
        "the merged export": AutoModelForCausalLM.from_pretrained(
            str(directory / "merged"), **plain
        ),
    }
    wrong = []
    for what, model in theirs.items():
        with torch.no_grad():
            gap = float(
                np.abs(
                    model(input_ids=torch.tensor(tokens[:1], dtype=torch.long)).logits.numpy()[0]
                    - ours
                ).max()
            )
        print(f"{name}: {what} against ours with adapters {gap:.1e}")
        if gap > TOLERANCE:
            wrong.append(
                f"{name}: {what} is {gap:.1e} away from our model with adapters, more than"
                f" {TOLERANCE}"
            )
    return wrong


def main() -> int:
    check = "--check" in sys.argv[1:]
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    wrong: list[str] = []
    for name, (config, _) in CASES.items():
        with tempfile.TemporaryDirectory() as directory:
            made = build(name, Path(directory))
            gap = check_ours(name, Path(directory), made)
        path = HERE / f"{name}.npz"
        if not check:
            np.savez_compressed(path, **made)
        drift = compare(path, made)
        print(f"{name}: ours against torch {gap:.1e}, torch against {path.name} {drift:.1e}")
        if gap > TOLERANCE:
            wrong.append(f"{name}: our model is {gap:.1e} away from torch, more than {TOLERANCE}")
        if drift > TOLERANCE:
            wrong.append(
                f"{path}: {drift:.1e} away from what torch computes now; run this script without"
                " --check"
            )
        if check and config.head == "lm":
            with tempfile.TemporaryDirectory() as directory:
                wrong += check_generation(name, Path(directory))
            with tempfile.TemporaryDirectory() as directory:
                wrong += check_adapters(name, Path(directory))
    for name in FAMILIES:
        with tempfile.TemporaryDirectory() as directory:
            made = make_family(name, Path(directory))
            path = HERE / f"family_{name}.npz"
            if not check:
                np.savez_compressed(path, **made)
            config, params = models.load(directory)
            ours = np.asarray(
                jax.jit(models.logits, static_argnums=1)(params, config, made["tokens"], LENGTHS)
            )[INSIDE]
            gap, drift = float(np.abs(ours - made["logits"]).max()), compare(path, made)
            print(f"{name}: ours against torch {gap:.1e}, torch against {path.name} {drift:.1e}")
            if gap > TOLERANCE:
                wrong.append(
                    f"{name}: our model is {gap:.1e} away from torch, more than {TOLERANCE}"
                )
            if drift > TOLERANCE:
                wrong.append(
                    f"{path}: {drift:.1e} away from what torch computes now; run this script"
                    " without --check"
                )
            if check:
                wrong += check_family(name, made, Path(directory))
    print("\n".join(wrong) or "all agree", file=sys.stderr if wrong else sys.stdout)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
