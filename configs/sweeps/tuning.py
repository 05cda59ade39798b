r"""The search that every method gets: four settings on two seeds and problems of their own, on
signed terms only.

python -m scope_jax.sweep --sweep=configs/sweeps/tuning.py --jobs=2 \
    --workdir=runs/tuning --records=docs/records/tuning

Learning rate 1.5e-4 or 3e-4, times two values of the method's main switch.
docs/results_appendix.md has the outcome, and says where what common.py holds is not the best of it.
"""

from typing import Any

from scope_jax.configs.sweeps.common import TUNING_PROBLEMS, checkpoints, run

RATES = (1.5e-4, 3e-4)
SEEDS = (100, 101)
# Of each method: two values of its main switch, as overrides.
BEFORE = {"method.select.rule": "band"}  # what SCOPE selected by then
SWITCH: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "scope": ({"loss.teacher_weight": 1.0, **BEFORE}, {"loss.teacher_weight": 3.0, **BEFORE}),
    "grpo": ({"advantage.std": True}, {"advantage.std": False}),
    "luffy": ({"loss.teacher_term": "shaped"}, {"loss.teacher_term": "nll"}),
    "dr_grpo": ({"loss.clip_high": 0.2}, {"loss.clip_high": 0.28}),
    "dapo": ({"advantage.std": True}, {"advantage.std": False}),
    "dapo_equal": ({"advantage.std": True}, {"advantage.std": False}),
    "gspo": (
        {"loss.clip_low": 3e-4, "loss.clip_high": 4e-4},
        {"loss.clip_low": 3e-3, "loss.clip_high": 4e-3},
    ),
    "relift": ({"method.buffer": 16}, {"method.buffer": 32}),
    "prm_reward": ({"method.process_weight": 0.1}, {"method.process_weight": 1.0}),
    "prm_min": ({"method.process_weight": 0.3}, {"method.process_weight": 1.0}),
    "vppo": ({"method.alpha": 0.25}, {"method.alpha": 0.5}),
    "sft": ({"sft.prompts": 32}, {"sft.prompts": 128}),
    "sft_grpo": ({"sft.steps": 5}, {"sft.steps": 10}),
    "self_correction": ({"loss.teacher_weight": 0.0}, {"loss.teacher_weight": 0.3}),
}


def prepare():
    return checkpoints("arithmetic")


def sweep():
    runs = []
    for method, values in SWITCH.items():
        for seed in SEEDS:
            for rate in RATES:
                for number, switch in enumerate(values):
                    setting = f"{method}/rate_{rate:g}/switch_{number}"
                    overrides = {"optimizer.learning_rate": rate, **switch}
                    labels = {"rate": rate, "switch": switch}
                    runs.append(
                        run(
                            "arithmetic",
                            method,
                            seed,
                            overrides,
                            setting,
                            TUNING_PROBLEMS,
                            **labels,
                        )
                    )
    return runs
