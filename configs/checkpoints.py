r"""Checkpoints that training starts from: NAME,TASK with base, teacher or prm of an embedded task
or of word_problems (algebra has no prm), or sft or prm of math.

    python -m scope_jax.supervise --config=base,arithmetic --workdir=cache/checkpoints/base
    python -m scope_jax.supervise --config=configs/checkpoints.py:prm,countdown \
        --workdir=cache/checkpoints/countdown/prm

Both forms are the same. `make demo` makes those of signed terms, a sweep those of its tasks.
"""

from scope_jax.configs.tasks import CACHE, MATH_TEST, STORY_NUMBERS
from scope_jax.configuration.supervision import default_config


def arithmetic_base():
    """The base policy of signed terms: mixed orders, and a misconception about subtractions that
    borrow.

    Measured (256 problems, 8 samples, temperature 1): pass@1 / pass@8 0.17 / 0.50 with 4 terms,
    0.15 / 0.49 with 5, 0.07 / 0.32 with 6 and 7. About two minutes on 2 cores.
    """
    config = default_config()
    config.steps = 600
    config.fresh.lengths = (2, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 7)
    config.target.misconception = 0.9
    return config


def arithmetic_teacher():
    """The teacher of signed terms: no misconception, and a style of its own (terms sorted).

    Measured (256 problems, 8 samples, temperature 1): pass@1 0.99 with 4 and 5 terms, 0.985 with 6
    and 7. About one minute on 2 cores.
    """
    config = default_config()
    config.seed = 1
    config.steps = 350
    config.fresh.lengths = (2, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 7)
    config.fresh.seed = 2
    config.target.style = "sorted"
    config.target.foreign_prefix = True
    config.start = f"{CACHE}/base"
    config.optimizer.learning_rate = 2e-3
    return config


def arithmetic_prm():
    """The process reward model of signed terms: labelled rollouts of the base, on the teacher's
    trunk.

    Measured on held-out rollouts of the base (899 failed, 125 right), threshold 0.5: first error
    exact 0.90, not later 0.91, later 0.06, none found 0.03; right rollouts left alone 0.84. About
    one minute on 2 cores.
    """
    config = default_config("prm")
    config.steps = 250
    config.start = f"{CACHE}/teacher"
    config.target.rollouts.policy = f"{CACHE}/base"
    config.target.rollouts.problems = 2048
    config.target.rollouts.lengths = (4, 5, 6)
    config.optimizer.learning_rate = 1e-3
    return config


# Of the long signed terms: short problems teach the arithmetic, long ones the book-keeping.
LONG_LENGTHS = (2, 3, 4, 5, 6, 7, 8, 9, 9, 10, 10, 11, 11, 12, 13)


def arithmetic_long_base():
    """The base policy of long signed terms: it writes additions before subtractions, and has 29
    of the 45 borrows wrong, always the same ones, whenever it meets them but for three times in a
    hundred; it reads the teacher's notation and seldom writes it.

    Measured (512 problems, 256 of each length; 8 samples, temperature 1): pass@1 / pass@8 0.084 /
    0.41, 0.105 / 0.44 with 10 terms, 0.085 / 0.40 with 11, 0.038 / 0.23 with 13; median first error
    of the failures after two thirds of the lines. 270 seconds of one core.
    """
    config = default_config()
    config.steps = 1500
    config.fresh.lengths = LONG_LENGTHS
    config.target.style = "additions_first"
    config.target.misconception = 0.97
    config.task.options = {"misconception_share": 0.5, "marks": True, "marked": 0.05}
    return config


def arithmetic_long_teacher():
    """The teacher of long signed terms: no misconception, its own order (sorted) and its own
    notation (a mark in every line).

    Measured (256 problems of 10 and 11 terms, 8 samples, temperature 1): pass@1 0.90; 13 terms
    0.79. 40 seconds of one core.
    """
    config = default_config()
    config.seed = 1
    config.steps = 180
    config.fresh.lengths = LONG_LENGTHS
    config.fresh.seed = 2
    config.target.style = "sorted"
    config.target.foreign_prefix = True
    config.task.options = {"marks": True, "marked": 1.0}
    config.start = f"{CACHE}/arithmetic_long/base"
    config.optimizer.learning_rate = 2e-3
    return config


def arithmetic_long_prm():
    """The process reward model of long signed terms: labelled rollouts of the base, on the
    teacher's trunk.

    Measured on held-out rollouts of the base (953 failed, 71 right), threshold 0.5: first error
    exact 0.91, not later 0.92, later 0.07, none found 0.01; right rollouts left alone 0.97. 130
    seconds of one core.
    """
    config = default_config("prm")
    config.steps = 1000
    config.start = f"{CACHE}/arithmetic_long/teacher"
    config.task.options = {"marks": True}
    config.target.rollouts.policy = f"{CACHE}/arithmetic_long/base"
    config.target.rollouts.problems = 2048
    config.target.rollouts.lengths = (10, 11)
    config.optimizer.learning_rate = 1e-3
    return config


def countdown_base():
    """The base policy of Countdown: any right line, and a misconception about subtractions.

    Measured (256 validation problems, 8 samples, temperature 1): pass@1 / pass@8 0.22 / 0.77 with 3
    numbers, 0.10 / 0.56 with 4, 0.02 / 0.13 with 5. Of the first errors with 4 numbers 0.55 are in
    the arithmetic and 0.44 are true lines that lose the target. 167 seconds of one core.
    """
    config = default_config()
    config.steps = 700
    config.task.name = "countdown"
    config.fresh.lengths = (3, 3, 4, 4, 4, 4, 4, 5)
    config.target.misconception = 0.4
    config.target.misconception_kind = "slip"
    return config


def countdown_teacher():
    """The teacher of Countdown: no misconception, and a style of its own (sums first, large numbers
    first).

    Measured (256 validation problems, 8 samples, temperature 1): pass@1 / pass@8 0.80 / 0.97 with 3
    numbers, 0.53 / 0.92 with 4, 0.20 / 0.63 with 5; what remains are true lines that lose the
    target (0.89 of the first errors with 4 numbers). 279 seconds of one core. A model of this size
    does not get further in a few minutes; a teacher without errors is the domain's program:
    `teacher.kind = "program"`, `teacher.style = "same_numbers"`.
    """
    config = default_config()
    config.seed = 1
    config.steps = 1200
    config.task.name = "countdown"
    config.fresh.lengths = (3, 3, 4, 4, 4, 4, 4, 5)
    config.fresh.seed = 2
    config.target.style = "sorted"
    config.target.foreign_prefix = True
    config.start = f"{CACHE}/countdown/base"
    config.optimizer.learning_rate = 3e-3
    return config


def countdown_prm():
    """The process reward model of Countdown: labelled rollouts of the base, trunk of the teacher.

    A weak one. Measured on held-out rollouts of the base (951 failed, 73 right), threshold 0.5:
    first error exact 0.60, not later 0.70, later 0.25, none found 0.05; right rollouts left alone
    0.29. Threshold 0.6: exact 0.67, not later 0.83, left alone 0.10. To call the first line wrong
    every time is exact in 0.64. 174 seconds of one core.
    """
    config = default_config("prm")
    config.steps = 1000
    config.task.name = "countdown"
    config.start = f"{CACHE}/countdown/teacher"
    config.target.rollouts.policy = f"{CACHE}/countdown/base"
    config.target.rollouts.problems = 4096
    config.target.rollouts.lengths = (4,)
    config.optimizer.learning_rate = 1e-3
    return config


def countdown_six_base():
    """The base policy of Countdown with six numbers: any right line, and one subtraction in five
    written wrong.

    Measured (256 test problems, 8 samples, temperature 1): pass@1 / pass@8 0.045 / 0.30 with 6
    numbers, 0.026 / 0.18 with 7. Five minutes of one core.
    """
    config = countdown_base()
    config.steps = 1200
    # Fewer numbers are what is left after a line or more.
    config.fresh.lengths = (3, 4, 4, 5, 5, 6, 6, 6, 7)
    config.target.misconception = 0.2
    return config


# A policy of this size does not learn quadratic equations in the time: its errors are of all kinds.
LINEAR = {"kinds": ("linear",)}


def algebra_base():
    """The base policy of algebra: linear equations, terms moved in any order, and a misconception:
    a term that is moved keeps its sign.

    Measured (200 problems, 8 samples, temperature 1): pass@1 / pass@8 0.076 / 0.40 with 2 lines,
    0.031 / 0.21 with 3, 0.016 / 0.11 with 4. Three minutes of two cores.
    """
    config = default_config()
    config.steps = 1000
    config.task.name = "algebra"
    config.task.options = dict(LINEAR)
    config.fresh.lengths = (2, 3, 3, 3, 4, 4, 4)
    config.target.misconception = 0.7
    config.target.misconception_kind = "sign"
    return config


def algebra_teacher():
    """The teacher of algebra: no misconception, and a style of its own (terms with x first). One
    without errors is the domain's program: `teacher.kind = "program"`.

    Measured (256 problems, 8 samples): pass@1 / pass@8 0.88 / 0.99 with 2 and 3 lines, 0.70 / 0.95
    with 4. Four minutes of two cores.
    """
    config = default_config()
    config.seed = 1
    config.steps = 1200
    config.task.name = "algebra"
    config.task.options = dict(LINEAR)
    config.fresh.lengths = (2, 3, 3, 3, 4, 4, 4)
    config.fresh.seed = 2
    config.target.style = "x_first"
    config.target.foreign_prefix = True
    config.start = f"{CACHE}/algebra/base"
    config.optimizer.learning_rate = 3e-3
    return config


def _word_problems(config):
    config.batch = 16
    config.remat = "layer"
    config.micro_batches = 2
    config.chat = True
    config.task.name = "word_problems"
    config.task.options = dict(STORY_NUMBERS)
    config.fresh.lengths = (2, 3, 4)
    config.optimizer.warmup_steps = 5
    config.checkpoint.every = 20
    return config


def word_problems_base():
    """The base policy of word problems: SmolLM2-135M-Instruct (`make real` makes its directory from
    a package) after a short supervised start, 60 updates of 16 solutions."""
    config = _word_problems(default_config())
    config.steps = 60
    config.start = "cache/models/SmolLM2-135M-Instruct"
    config.target.style = "varied"
    config.target.max_tokens = 208
    config.optimizer.learning_rate = 5e-4
    return config


def word_problems_teacher():
    """The teacher of word problems: the base, trained further on other problems."""
    config = word_problems_base()
    config.steps = 70
    config.start = f"{CACHE}/word_problems/base"
    config.fresh.seed = 2
    return config


def word_problems_prm():
    """The process reward model of word problems: rollouts of the base, each step checked, on the
    teacher's trunk.

    A weak one. Measured on held-out rollouts of the base (109 failed, 19 right), threshold 0.6:
    first error exact 0.42, not later 0.83; with 100 steps on 881 rollouts and a rate of 4e-4 0.47.
    The teacher's likelihood finds 0.78 (docs/real.md). 540 seconds of two cores.
    """
    config = _word_problems(default_config("prm"))
    config.steps = 50
    config.start = f"{CACHE}/word_problems/teacher"
    config.target.rollouts.policy = f"{CACHE}/word_problems/base"
    config.target.rollouts.problems = 96
    config.target.rollouts.held_out = 32
    config.target.rollouts.group = 4
    config.target.rollouts.problems_at_once = 32
    config.target.rollouts.lengths = (2, 3)
    config.target.rollouts.prompt_tokens = 96
    config.target.rollouts.new_tokens = 112
    config.optimizer.learning_rate = 2e-4
    return config


def _math(config):
    config.batch = 64
    config.micro_batches = 16
    config.dtype = "bfloat16"
    config.remat = "layer"
    config.mesh.data, config.mesh.fsdp = 1, -1
    config.start = "models/Qwen2.5-Math-1.5B"
    config.chat = True
    config.task.name = "math"
    config.task.data = "data"
    config.task.train = {
        "math": {"path": "MATH-lighteval", "fields": {"prompt": "problem"}, "answer_from": "boxed"}
    }
    config.task.evaluation = MATH_TEST
    config.task.decontaminate = "remove"
    config.optimizer.learning_rate = 1e-5
    config.optimizer.b2 = 0.95
    config.checkpoint.every = 100
    return config


def math_sft():
    """Supervised fine-tuning of Qwen2.5-Math-1.5B on the solutions of MATH, written in steps that
    SCOPE can divide.

    Not run with real weights here: a starting point. Files as in tasks.py, `math_1_5b`. Solutions
    are divided by blank lines (`target.in_steps`), prompts go into the chat template, and problems
    that overlap with MATH-500 are left out.

    Memory (float32 parameters, used in bfloat16, and float32 moments): about 18 GB, split over
    `mesh.fsdp` devices.
    """
    config = _math(default_config())
    config.steps = 350  # three epochs of 7,500 problems
    config.target.in_steps = True
    config.target.max_tokens = 2048
    config.optimizer.warmup_steps = 20
    return config


def math_prm():
    """A process reward model for mathematics without step labels: Qwen2.5-Math-1.5B judges its own
    steps by continuing them.

    Not run with real weights here: a starting point, after Math-Shepherd (arXiv 2312.08935; 8
    continuations of each step). Files as in tasks.py, `math_1_5b`. The labels are most of the work:
    6,000 problems x 4 rollouts, each failed one continued 8 times after every step up to its first
    wrong one. They are kept in labels.jsonl, and a run that was stopped goes on there.

    To measure it: python -m scope_jax.evaluate_prm --model=runs/math_prm --data=data/ProcessBench
    """
    config = _math(default_config("prm"))
    config.steps = 700  # about two epochs
    config.target.rollouts.policy = "models/Qwen2.5-Math-1.5B"
    config.target.rollouts.problems = 6000
    config.target.rollouts.held_out = 256
    config.target.rollouts.group = 4
    config.target.rollouts.problems_at_once = 64
    config.target.rollouts.prompt_tokens = 512
    config.target.rollouts.new_tokens = 2048
    config.target.labels.kind = "monte_carlo"
    config.target.labels.continuations = 8
    config.target.labels.estimate = "hard"
    config.optimizer.warmup_steps = 30
    return config


CHECKPOINTS = {
    "base,arithmetic": arithmetic_base,
    "teacher,arithmetic": arithmetic_teacher,
    "prm,arithmetic": arithmetic_prm,
    "base,arithmetic_long": arithmetic_long_base,
    "teacher,arithmetic_long": arithmetic_long_teacher,
    "prm,arithmetic_long": arithmetic_long_prm,
    "base,countdown": countdown_base,
    "teacher,countdown": countdown_teacher,
    "prm,countdown": countdown_prm,
    "base,countdown_six": countdown_six_base,
    "base,algebra": algebra_base,
    "teacher,algebra": algebra_teacher,
    "base,word_problems": word_problems_base,
    "teacher,word_problems": word_problems_teacher,
    "prm,word_problems": word_problems_prm,
    "sft,math": math_sft,
    "prm,math": math_prm,
}


def get_config(words: str = "base,arithmetic"):
    """The config of NAME,TASK. Raises ValueError for an unknown one."""
    if words not in CHECKPOINTS:
        raise ValueError(f"{words}: expected NAME,TASK, one of {', '.join(CHECKPOINTS)}")
    return CHECKPOINTS[words]()
