r"""SCOPE with one switch changed, against SCOPE as it was when these were made (`scope_first`:
with the standard deviation, the mean over rows and the band of the selection): what each part is
worth. Five seeds on signed terms, three on Countdown.

python -m scope_jax.sweep --sweep=configs/sweeps/ablations.py --jobs=2 \
    --workdir=runs/ablations --records=docs/records/ablations
"""

from scope_jax.configs.sweeps.common import DOMAINS, checkpoints, run

SEEDS = {"arithmetic": range(5), "countdown": range(3)}
VARIANTS = {
    "as it was": {},
    "tail by the teacher": {"correction.tail": "teacher"},
    "no tail": {"correction.tail": "none", "correction.accept": "unverified"},
    "three tries of the tail": {"correction.tails": 3},
    "no teacher term": {"loss.teacher_term": "mask"},
    "teacher term shaped": {"loss.teacher_term": "shaped"},
    "teacher term reinforce": {"loss.teacher_term": "reinforce"},
    "teacher term importance": {"loss.teacher_term": "importance"},
    "teacher weight 0.1": {"loss.teacher_weight": 0.1},
    "teacher weight 0.3": {"loss.teacher_weight": 0.3},
    "teacher weight 3": {"loss.teacher_weight": 3.0},
    "teacher weight constant": {"loss.teacher_schedule": "constant"},
    "select top": {"correction.select.rule": "top"},
    "select at random": {"correction.select.rule": "random"},
    "groups that failed altogether only": {"correction.select.groups": "all_failed"},
    "first steps too": {"correction.select.good_steps": 0},
    "no standard deviation, token mean": {"advantage.std": False, "loss.normaliser": "token"},
    "four per group": {"correction.select.per_group": 4},
    "no failure kept": {"correction.select.keep_failure": False},
    "place append": {"correction.place": "append"},
    "place random failure": {"correction.place": "replace_random_failure"},
    "threshold 0.2": {"correction.threshold": 0.2},
    "threshold 0.8": {"correction.threshold": 0.8},
    "a fifth of the errors misplaced": {"correction.noise": 0.2},
    "half of the errors misplaced": {"correction.noise": 0.5},
    "localiser oracle": {"correction.localiser": "oracle"},
    "localiser monte_carlo": {"correction.localiser": "monte_carlo"},
    "program teacher": {"teacher.kind": "program"},
}


def prepare():
    return [checkpoint for domain in DOMAINS for checkpoint in checkpoints(domain)]


def sweep():
    runs = []
    for domain in DOMAINS:
        for seed in SEEDS[domain]:
            for name, overrides in VARIANTS.items():
                label = "ablation_" + name.replace(" ", "_")
                runs.append(run(domain, "scope_first", seed, overrides, label, variant=name))
    return runs
