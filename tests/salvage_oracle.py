"""The files of a salvage read by the trainers that they are for: TRL's DPOTrainer and PRMTrainer.

    .venv-oracles/bin/python tests/salvage_oracle.py

Needs torch and TRL (1.16 has no PRMTrainer any more). `make oracles` runs this. Checked, on a
salvage of hand-written rollouts:
  1. DPOTrainer takes pairs.jsonl as `datasets` loads it: its ids are prompt, chosen and rejected
     with an end token after each of the last two, and an update on them has a finite loss;
  2. PRMTrainer takes steps.jsonl: one label for each step, where the step's separator ends, and an
     update on them has a finite loss.
"""

import itertools
import math
import tempfile
from pathlib import Path
from typing import Any


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = salvaged(folder)
        check_pairs(folder, made)
        check_steps(folder, made)
    print("salvage oracle: all as expected")


def salvaged(folder: Path) -> Path:
    """The output of a salvage; `folder`/policy is the model that the trainers start from."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    from support.fixtures import mesh_of
    from support.salvage_files import WRITTEN, logged, settings_of, write_models, write_rollouts

    from scope_jax.salvage.run import salvage

    write_models(folder)
    rows = [logged(text, reward, n) for n, (text, reward, _) in enumerate(WRITTEN)]
    rollouts = write_rollouts(folder / "r.jsonl", rows)
    out = folder / "out"
    summary = salvage(settings_of(folder, rollouts, out, right_steps=True), mesh_of("1"))
    assert summary["rescued"] == 4, summary
    return out


def loaded(file: Path) -> Any:
    import datasets

    return datasets.load_dataset("json", data_files=str(file), split="train")


def check_pairs(folder: Path, made: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    pairs = loaded(made / "pairs.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "policy"),
        args=DPOConfig(**_settings(folder / "dpo")),
        train_dataset=pairs,
        processing_class=tokenizer,
    )
    for row, ids in zip(pairs, trainer.train_dataset, strict=True):
        for name, end in (("prompt", ""), ("chosen", "#"), ("rejected", "#")):
            # The names of the columns changed: prompt_ids, before prompt_input_ids.
            found = ids.get(f"{name}_ids", ids.get(f"{name}_input_ids"))
            text = "".join(
                "#" if i == tokenizer.eos_token_id else tokenizer.decode([i]) for i in found
            )
            assert text == row[name] + end, (name, text, row[name])
    loss = trainer.train().training_loss
    assert math.isfinite(loss), loss
    print(f"DPOTrainer: {len(pairs)} pairs, loss {loss:.3f}")


def check_steps(folder: Path, made: Path) -> None:
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    try:
        from trl.experimental.prm import PRMConfig, PRMTrainer
    except ImportError:  # before TRL 1
        from trl import PRMConfig, PRMTrainer

    steps = loaded(made / "steps.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    model = AutoModelForTokenClassification.from_pretrained(folder / "policy", num_labels=2)
    trainer = PRMTrainer(
        model=model,
        args=PRMConfig(step_separator="\n", **_settings(folder / "prm_trainer")),
        train_dataset=steps,
        processing_class=tokenizer,
    )
    for row, encoded in zip(steps, trainer.train_dataset, strict=True):
        ids, labels = encoded["input_ids"], encoded["labels"]
        places = [n for n, label in enumerate(labels) if label != -100]
        assert [labels[n] for n in places] == [int(label) for label in row["labels"]]
        ends = [0, *(n + 1 for n in places)]
        parts = [tokenizer.decode(ids[a:b]) for a, b in itertools.pairwise(ends)]
        parts[0] = parts[0].removeprefix(row["prompt"])
        assert parts == [step + "\n" for step in row["completions"]], parts
    loss = trainer.train().training_loss
    assert math.isfinite(loss), loss
    print(f"PRMTrainer: {len(steps)} solutions, loss {loss:.3f}")


def _settings(folder: Path) -> dict[str, Any]:
    """Of a run of one update on CPU."""
    return {
        "output_dir": str(folder),
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


if __name__ == "__main__":
    main()
