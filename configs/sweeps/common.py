"""What the sweeps of the embedded tasks share: their methods, checkpoints and run sizes."""

from scope_jax.sweep import Checkpoint, Run

METHODS = (
    "scope",
    "grpo",
    "luffy",
    "dr_grpo",
    "dapo",
    "gspo",
    "relift",
    "prm_reward",
    "prm_min",
    "vppo",
    "sft",
    "sft_grpo",
    "self_correction",
)
DOMAINS = ("arithmetic", "countdown")
# Thirty rollout batches are sixty updates.
SIZE = {"steps": 30, "evaluation.problems": 500, "evaluation.ood_problems": 500, "checkpoint.every": 1000}
CACHE = "cache/checkpoints"
# Problems are drawn anew for each purpose: what was tuned on is not what is reported.
TUNING_PROBLEMS, TABLE_PROBLEMS = 1, 2


def checkpoints(domain: str) -> list[Checkpoint]:
    """Base, teacher and process reward model of a domain."""
    place = CACHE if domain == "arithmetic" else f"{CACHE}/{domain}"
    return [Checkpoint(f"configs/{domain}/{name}.py", f"{place}/{name}") for name in ("base", "teacher", "prm")]


def run(domain: str, method: str, seed: int, overrides=(), name: str = "", problems: int = TABLE_PROBLEMS, **labels) -> Run:
    """A run of `configs/<domain>/<method>.py` in the size of the sweeps; `problems` is the seed of the data set."""
    more = {**SIZE, "seed": seed, "task.options.seed": problems, **dict(overrides)}
    if method == "sft":
        more["demonstrations.supervised_steps"] = more["steps"]
    label = name or method
    return Run(
        f"{domain}/{label}/seed_{seed}",
        f"configs/{domain}/{method}.py",
        more,
        {"domain": domain, "method": method, "seed": seed, **labels},
    )
