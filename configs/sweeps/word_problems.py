r"""GRPO and SCOPE on word problems with a language model, three seeds each. Then SCOPE's objective
with the correction off, and SCOPE with a process reward model in place of the teacher's likelihood.
22 batches, so that there are at least forty updates (one in which no group has an advantage is left
out).

python -m scope_jax.sweep --sweep=configs/sweeps/word_problems.py --jobs=1 --keep \
    --workdir=runs/word_problems --records=docs/records/word_problems

The base starts from SmolLM2-135M-Instruct, which `make real` puts into its place. About an hour and
a half on two cores for GRPO and SCOPE, after the checkpoints; what was measured is in docs/real.md.
"""

from typing import Any

from scope_jax.configs.sweeps.common import CACHE
from scope_jax.sweep.runs import Checkpoint, Run

SEEDS = range(3)
# Name in the tables -> method of run.py; a pair of runs stands beside each other before the next
# seed begins.
PAIR: dict[str, tuple[str, dict[str, Any]]] = {"grpo": ("grpo", {}), "scope": ("scope", {})}
DOMAIN = "word_problems"
PRM = f"{CACHE}/{DOMAIN}/prm"
CONTROLS: dict[str, tuple[str, dict[str, Any]]] = {
    "scope_off": ("policy_gradient", {}),
    "scope_prm": (
        "scope",
        {"localiser.kind": "prm", "localiser.threshold": 0.6, "models.prm": PRM},
    ),
}


def prepare():
    return [
        Checkpoint(f"configs/checkpoints.py:{name},{DOMAIN}", f"{CACHE}/{DOMAIN}/{name}")
        for name in ("base", "teacher", "prm")
    ]


def _run(method: str, file: str, own: dict[str, Any], seed: int) -> Run:
    return Run(
        f"{DOMAIN}/{method}/seed_{seed}",
        f"configs/run.py:{file},{DOMAIN}",
        {"steps": 22, "seed": seed, **own},
        {"domain": DOMAIN, "method": method, "seed": seed},
    )


def sweep():
    return [
        _run(method, file, own, seed)
        for arms in (PAIR, CONTROLS)
        for seed in SEEDS
        for method, (file, own) in arms.items()
    ]
