"""What the sweeps of the embedded tasks share: methods, what the search chose for each,
checkpoints, run sizes."""

from typing import Any

from scope_jax.sweep.runs import Checkpoint, Run

# Name in the tables -> (method of run.py, what the search chose or the name adds). Of the search's
# learning rates, the best.
LOW, HIGH = {"optimizer.learning_rate": 1.5e-4}, {"optimizer.learning_rate": 3e-4}
# SCOPE's objective when table and ablations were made: what they suggested, tried again on other
# seeds, is the default.
FIRST = {"advantage.std": True, "loss.normaliser": "sequence", "method.select.rule": "band"}
# LUFFY's entropy bonus when they were made: the number of its script, which weighs far more under
# our normaliser (controls.py).
STRONG = {"loss.entropy_bonus": 1e-3}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "scope": ("scope", LOW),
    "scope_first": ("scope", LOW | FIRST),
    "scope_plus": ("scope_plus", LOW),
    # SCOPE's objective with the correction off: what the correction by itself is worth.
    "scope_off": ("policy_gradient", LOW),
    # The same with the wrong step drawn again by the policy itself: what the teacher is worth.
    "scope_self": ("self_correction", LOW),
    "grpo": ("grpo", LOW | {"advantage.std": False}),
    "luffy": ("luffy", LOW | STRONG),
    "luffy_nll": ("luffy", LOW | STRONG | {"loss.teacher_term": "nll"}),
    "dr_grpo": ("dr_grpo", LOW),
    # DAPO rolls out up to three batches of prompts for one update. `dapo_equal` rolls out as many
    # as the others and trains on eight groups, those that tell something first.
    "dapo": ("dapo", LOW | {"advantage.std": False}),
    "dapo_equal": (
        "dapo",
        LOW
        | {
            "advantage.std": False,
            "rollout.prompts": 8,
            "method.resample": 1,
            "training.micro_batches": 1,
        },
    ),
    "gspo": ("gspo", LOW | {"loss.clip_low": 3e-3, "loss.clip_high": 4e-3}),
    "relift": ("relift", HIGH),
    "prm_reward": ("prm_reward", LOW | {"method.process_weight": 0.1}),
    "prm_min": ("prm_min", LOW | {"method.process_weight": 0.3}),
    "vppo": ("vppo", HIGH | {"method.alpha": 0.25}),
    # The same with labels of the step check in place of the PRM's scores, which these rewards wear
    # out.
    "prm_reward_oracle": (
        "prm_reward",
        LOW | {"method.process_weight": 0.1, "localiser.kind": "oracle"},
    ),
    "vppo_oracle": ("vppo", LOW | {"method.alpha": 0.25} | {"localiser.kind": "oracle"}),
    "sft": ("sft", HIGH | {"sft.prompts": 128}),
    "sft_grpo": ("sft_grpo", LOW),
    "self_correction": ("self_correction", LOW | FIRST | {"loss.teacher_weight": 0.1}),
}
DOMAINS = ("arithmetic", "countdown")
# Thirty rollout batches are sixty updates.
SIZE = {
    "steps": 30,
    "evaluation.problems": 500,
    "evaluation.ood_problems": 500,
    "checkpoint.every": 1000,
}
# Evaluated at three temperatures (greedy with one sample), with enough samples for pass@32 and for
# paths among four right ones.
TEMPERATURES = {"evaluation.samples": 32, "evaluation.more_temperatures": (0.6, 0.0)}
CACHE = "cache/checkpoints"
# Problems are drawn anew for each purpose: what was tuned on is not what is reported.
TUNING_PROBLEMS, TABLE_PROBLEMS, CONFIRMATION_PROBLEMS, CONTROL_PROBLEMS = 1, 2, 3, 4
TEMPERATURE_PROBLEMS, FACTORIAL_PROBLEMS, HYPOTHESIS_PROBLEMS, TEACHER_END_PROBLEMS = 5, 6, 7, 8


def checkpoints(domain: str) -> list[Checkpoint]:
    """Base, teacher and process reward model of a domain."""
    place = CACHE if domain == "arithmetic" else f"{CACHE}/{domain}"
    return [
        Checkpoint(f"configs/checkpoints.py:{name},{domain}", f"{place}/{name}")
        for name in ("base", "teacher", "prm")
    ]


def run(
    domain: str,
    method: str,
    seed: int,
    overrides=(),
    name: str = "",
    problems: int = TABLE_PROBLEMS,
    **labels,
) -> Run:
    """A run of a method in the size of the sweeps; `problems` is the seed of the data set."""
    file, own = METHODS[method]
    more = {**SIZE, "seed": seed, "task.options.seed": problems, **own, **dict(overrides)}
    if file == "sft":
        more["sft.steps"] = more["steps"]
    label = name or method
    return Run(
        f"{domain}/{label}/seed_{seed}",
        f"configs/run.py:{file},{domain}",
        more,
        {"domain": domain, "method": method, "seed": seed, **labels},
    )
