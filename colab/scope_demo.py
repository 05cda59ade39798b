# ruff: noqa: E402  (imports follow the cell that installs the package)
# %% [markdown]
# # SCOPE in a notebook
#
# Reinforcement learning with verifiable rewards throws a failed rollout away whole, however good its beginning was.
# SCOPE (arXiv 2602.24110) keeps the beginning: a process reward model finds the **first wrong step**, a **teacher**
# writes that one step anew, and the **policy goes on by itself**. If the answer is now right, the mixed trajectory
# takes the failure's place in its group. This is an independent implementation in JAX.
#
# Everything here is tiny and made in this notebook: a policy with a misconception, a teacher, a process reward model,
# and problems of the embedded task "signed terms". Set `SMOKE` to see every cell run in a minute, with models that
# have learned nothing.

# %%
import os
import subprocess
import sys

SMOKE = os.environ.get("SCOPE_SMOKE") == "1"
# On Colab: a clone of the repository, or its folder uploaded. On a GPU "/content/scope_jax[cuda]", on a TPU "[tpu]";
# then restart the session once after this cell.
SOURCE = "/content/scope_jax"
if "google.colab" in sys.modules:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", SOURCE], check=True)

# %%
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from scope_jax import correction, models, rollout, run, supervise, tasks, train
from scope_jax.configuration import default_config
from scope_jax.prm import ProcessRewardModel
from scope_jax.text import encode_prompts, load_tokenizer, step_ends, stop_table
from scope_jax.types import Owner

FOLDER = Path("scope_demo_smoke" if SMOKE else "scope_demo")

# %% [markdown]
# ## 1. Checkpoints
#
# A problem is a row of signed terms, such as `+7-3+9-1=`. A solution takes the terms in any order, one line for each,
# holding the term and the running totals modulo 10 and modulo 9: `+777`, then `-344`, and so on. Any order is right, so
# a problem has many solutions.
# The base policy gets its misconception from its demonstrations: subtractions that borrow nearly always come out one
# too high. The teacher is that policy trained further, without the misconception, to go on from what somebody else
# began. The process reward model learns from labelled rollouts of the base policy.
# A folder that is finished is not made again: run the cell twice and the second time takes no time.


# %%
def checkpoint(name, kind="policy", **settings):
    config = supervise.default_config(kind)
    config.update(settings)
    if SMOKE:
        config.steps, config.batch, config.micro_batches, config.optimizer.warmup_steps = 2, 16, 1, 0
        config.model.update({"hidden_size": 32, "num_layers": 1, "ffn_size": 64})
    supervise.supervise(config, FOLDER / name)
    return str(FOLDER / name)


lengths = {"lengths": (2, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 7)}
base = checkpoint("base", steps=600, fresh=lengths, target={"misconception": 0.95})
style = {"style": "sorted", "foreign_prefix": True}
able = checkpoint("teacher", steps=350, seed=1, start=base, fresh=lengths | {"seed": 2}, target=style)
labelled = {"rollouts": {"policy": base, **({"problems": 32, "held_out": 16} if SMOKE else {})}}
judge = checkpoint("prm", "prm", steps=150, start=able, target=labelled, optimizer={"learning_rate": 1e-3})

# %% [markdown]
# ## 2. A group of rollouts
#
# Eight tries at each of four problems. The outcome verifier looks at the last line only.

# %%
policy_config, policy = models.load(base)
teacher_config, teacher = models.load(able)
prm_config, prm_weights = models.load(judge)
tokenizer = load_tokenizer(base)
domain = tasks.Arithmetic(start="zero")
problems = [domain.problem(seed=3, split="test", index=n, k=5) for n in range(4)]

key = jax.random.key(0)
prompts, _ = encode_prompts(tokenizer, [p.prompt for p in problems], max_length=16)
spec = rollout.SampleSpec(max_new_tokens=30, end_ids=policy_config.end_ids)
batch = rollout.generate(policy, policy_config, rollout.from_prompts(prompts, 8, 48), key, spec, shared_prefix=8)

owners = [p for p in problems for _ in range(8)]
written = rollout.completion_ids(batch)
right = domain.verify(owners, rollout.texts(written, tokenizer))
for n, problem in enumerate(problems):
    print(problem.prompt, "answer", problem.answer, "right", sum(map(bool, right[8 * n : 8 * n + 8])), "of 8")

# %% [markdown]
# ## 3. The first wrong step
#
# Steps are cut out of the token ids that were sampled; nothing is decoded and encoded again. The process reward model
# gives each step the probability that it is right, and the first one below the threshold is the first error.

# %%
failed = [row for row, good in enumerate(right) if not good]
ends = [step_ends(written[row], tokenizer, domain.separator) for row in failed]
pieces = [[written[row][i:j] for i, j in zip([0, *stop], stop)] for row, stop in zip(failed, ends)]
steps = [rollout.texts(ids, tokenizer) for ids in pieces]
prm = ProcessRewardModel(prm_weights, prm_config, load_tokenizer(judge))
score, valid, unscored = prm.score([owners[row].prompt for row in failed], steps)
error = np.asarray(correction.first_error(jnp.asarray(score), jnp.asarray(valid), threshold=0.5))

located = [n for n in range(len(failed)) if 0 < error[n] < len(steps[n])] or [0]
n = max(located, key=lambda n: int(error[n]))
row, first = failed[n], min(int(error[n]), max(len(steps[n]) - 1, 0))
print(f"{len(failed)} failures; row {row}:", owners[row].prompt)
for number, step in enumerate(steps[n]):
    print(f"  {step.strip():6} {score[n, number]:.2f}", "<- first error" if number == first else "")

# %% [markdown]
# ## 4. The teacher writes one step, the policy goes on
#
# The row is cut before the wrong step. The teacher stops at its first newline; then the policy continues. Every token
# remembers who wrote it.

# %%
one = rollout.take_rows(batch, jnp.array([row]), jnp.array([True]))
kept = rollout.cut(one, one.prompt_length_B + [0, *ends[n]][first])
stop = stop_table(tokenizer, domain.separator, teacher_config.vocab_size)
one_step = rollout.SampleSpec(temperature=0.0, max_new_tokens=8, end_ids=teacher_config.end_ids, stop=stop)
corrected = rollout.generate(teacher, teacher_config, kept, key, one_step, owner=Owner.TEACHER, stream=1)
mixed = rollout.generate(policy, policy_config, corrected, key, spec, stream=2)

ids = rollout.completion_ids(mixed)[0]
start = int(mixed.prompt_length_B[0])
stops = step_ends(ids, tokenizer, domain.separator)
for i, j in zip([0, *stops], stops):
    print(f"  {Owner(int(mixed.owner_BT[0, start + i])).name.lower():8} {tokenizer.decode(ids[i:j]).strip()}")
print("right now:", domain.verify([owners[row]], rollout.texts([ids], tokenizer))[0], " answer:", owners[row].answer)

# %% [markdown]
# ## 5. Training
#
# The same loop twice, with another method: GRPO, which learns from the policy's own rollouts as they are, and SCOPE.
# Minutes on a CPU.


# %%
def arm(method):
    config = default_config(method)
    config.update({"steps": 2 if SMOKE else 40, "models": {"policy": base, "teacher": able, "prm": judge}})
    config.update({"task": {"data": str(FOLDER / "tfds")}, "teacher": {"step_tokens": 8}, "loss": {"normaliser": "token"}})
    config.task.options = {"train_size": 2048, "lengths": (4, 5), "start": "zero"}
    config.rollout.update({"prompts": 4 if SMOKE else 16, "prompt_tokens": 11, "new_tokens": 29})
    config.optimizer.update({"learning_rate": 1e-4, "warmup_steps": 5, "b2": 0.98})
    config.evaluation.update({"problems": 0 if SMOKE else 64, "ood_problems": 0})
    train.train(config, FOLDER / method)
    return run.read_metrics(FOLDER / method / "metrics.jsonl")


arms = {method.upper(): arm(method) for method in (["scope"] if SMOKE else ["grpo", "scope"])}

# %%
for name, lines in arms.items():
    rewards = np.array([line["reward/mean"] for line in lines])
    plt.plot([rewards[max(0, i - 9) : i + 1].mean() for i in range(len(rewards))], label=name)
plt.gca().set(xlabel="update", ylabel="reward of the policy's own rollouts (mean of 10 updates)")
plt.legend()
plt.show()

# %% [markdown]
# The folder of each run holds a `report.html` with every curve and rescued rollouts side by side. A single seed and
# 40 updates say little about which method is better: the repository's `docs/embedded_task.md` has the comparison over
# seeds.
