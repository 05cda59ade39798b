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
    "tail by the teacher": {"method.tail": "teacher"},
    "no tail": {"method.tail": "none", "method.accept": "unverified"},
    "three tries of the tail": {"method.tails": 3},
    "no teacher term": {"loss.teacher_term": "mask"},
    "teacher term shaped": {"loss.teacher_term": "shaped"},
    "teacher term reinforce": {"loss.teacher_term": "reinforce"},
    "teacher term importance": {"loss.teacher_term": "importance"},
    "teacher weight 0.1": {"loss.teacher_weight": 0.1},
    "teacher weight 0.3": {"loss.teacher_weight": 0.3},
    "teacher weight 3": {"loss.teacher_weight": 3.0},
    "teacher weight constant": {"loss.teacher_schedule": "constant"},
    "select top": {"method.select.rule": "top"},
    "select at random": {"method.select.rule": "random"},
    "groups that failed altogether only": {"method.select.groups": "all_failed"},
    "first steps too": {"method.select.good_steps": 0},
    "no standard deviation, token mean": {"advantage.std": False, "loss.normaliser": "token"},
    "four per group": {"method.select.per_group": 4},
    "no failure kept": {"method.select.keep_failure": False},
    "place append": {"method.place": "append"},
    "place random failure": {"method.place": "replace_random_failure"},
    "threshold 0.2": {"localiser.threshold": 0.2},
    "threshold 0.8": {"localiser.threshold": 0.8},
    "a fifth of the errors misplaced": {"localiser.noise": 0.2},
    "half of the errors misplaced": {"localiser.noise": 0.5},
    "localiser oracle": {"localiser.kind": "oracle"},
    "localiser monte_carlo": {"localiser.kind": "monte_carlo"},
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
