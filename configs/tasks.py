"""The tasks of run.py: problems, policy, sizes; and what methods with a teacher or a PRM add.

The checkpoints of signed terms are made by `make demo`, those of the others by checkpoints.py.
Published weights and data lie where the settings say (any other place by --config.models.policy=...
and so on; docs/data.md).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from scope_jax.configuration import default_config

CACHE = "cache/checkpoints"


@dataclasses.dataclass(frozen=True)
class Task:
    """A task of run.py. The mappings are settings by dotted name."""

    config: Callable[[], ConfigDict]  # what all methods share
    teacher: Mapping[str, Any]  # of methods that ask a teacher
    prm: Mapping[str, Any]  # of methods that score steps
    rescue: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of SCOPE


def change(config: ConfigDict, *settings: Mapping[str, Any]) -> None:
    """Set settings given by their dotted names."""
    for name, value in (item for mapping in settings for item in mapping.items()):
        *path, last = name.split(".")
        section = config
        for part in path:
            section = section[part]
        section[last] = value


# ---- the embedded tasks


def arithmetic() -> ConfigDict:
    """Signed terms: sums of five and six terms, one line a step; two updates for each batch."""
    config = default_config()
    config.steps = 25
    config.task.data = "cache/tfds"
    config.task.options = {
        "lengths": (5, 6),
        "ood_lengths": (7,),
        "start": "zero",
        "test_size": 1000,
        "test_ood_size": 1000,
    }
    config.models.policy = f"{CACHE}/base"
    config.rollout.prompts = 16
    config.rollout.group = 8
    config.rollout.prompt_tokens = 13
    config.rollout.new_tokens = 34
    config.loss.normaliser = "token"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 5
    config.optimizer.b2 = 0.98
    config.training.mini_batches = config.training.micro_batches = 2
    config.evaluation.prompt_tokens = 15
    config.evaluation.new_tokens = 39
    return config


def arithmetic_long() -> ConfigDict:
    """Long signed terms: ten and eleven terms, a base that fails late, a teacher with an order and
    a notation of its own (docs/embedded_task.md)."""
    config = arithmetic()
    config.steps = 180
    config.task.options = {
        "lengths": (10, 11, 11),
        "ood_lengths": (13,),
        "start": "zero",
        "marks": True,
        "test_size": 1000,
        "test_ood_size": 1000,
    }
    config.models.policy = f"{CACHE}/arithmetic_long/base"
    config.rollout.prompt_tokens = 23
    config.rollout.new_tokens = 70
    config.evaluation.prompt_tokens = 27
    config.evaluation.new_tokens = 82
    return config


def countdown() -> ConfigDict:
    """Countdown: reach a target from four numbers, one operation a step."""
    config = arithmetic()
    config.task.name = "countdown"
    config.task.options = {
        "lengths": (4,),
        "ood_lengths": (5,),
        "test_size": 1000,
        "test_ood_size": 1000,
    }
    config.models.policy = f"{CACHE}/countdown/base"
    config.teacher.style = "same_numbers"
    config.rollout.prompt_tokens = 15
    config.rollout.new_tokens = 40
    config.teacher.step_tokens = 16
    config.evaluation.prompt_tokens = 18
    config.evaluation.new_tokens = 59
    return config


def countdown_six() -> ConfigDict:
    """Countdown with six numbers: solutions of five lines. The teacher is the domain's program and
    the step check finds the first wrong line: models of this size learn neither (docs/domains.md).
    """
    config = countdown()
    config.steps = 90
    config.task.options = {
        "lengths": (6,),
        "ood_lengths": (7,),
        "test_size": 1000,
        "test_ood_size": 1000,
    }
    config.models.policy = f"{CACHE}/countdown_six/base"
    config.rollout.prompt_tokens = 21
    config.rollout.new_tokens = 76
    config.teacher.step_tokens = 24
    config.evaluation.prompt_tokens = 24
    config.evaluation.new_tokens = 100
    return config


def algebra() -> ConfigDict:
    """Algebra: linear equations that take two or three lines; a checker finds the first wrong line,
    no process reward model."""
    config = arithmetic()
    config.steps = 100
    config.optimizer.learning_rate = 1.5e-4
    config.task.name = "algebra"
    config.task.options = {
        "kinds": ("linear",),
        "lengths": (2, 3),
        "ood_lengths": (4,),
        "test_size": 1000,
        "test_ood_size": 1000,
    }
    config.models.policy = f"{CACHE}/algebra/base"
    config.teacher.style = "x_first"
    config.teacher.step_tokens = 24
    config.rollout.prompt_tokens = 21
    config.rollout.new_tokens = 45
    config.evaluation.prompt_tokens = 21
    config.evaluation.new_tokens = 54
    return config


# Small numbers: with larger ones a small model's errors are of arithmetic, each of its own kind.
STORY_NUMBERS = {
    "largest_count": 5,
    "largest_each": 5,
    "largest_amount": 10,
    "largest_total": 50,
}


# Of the process reward model of word problems: it finds errors too early rather than too late.
PRM_THRESHOLD = 0.6


def word_problems() -> ConfigDict:
    """Word problems in English for a small language model: two or three events, three to seven
    lines of solution; two updates for each batch."""
    config = default_config()
    config.steps = 20
    config.task.name = "word_problems"
    config.task.data = "cache/tfds"
    config.task.options = {"lengths": (2, 3), "ood_lengths": (4,), **STORY_NUMBERS}
    config.models.policy = f"{CACHE}/word_problems/base"
    config.rollout.chat = True
    config.rollout.prompts = 6
    config.rollout.group = 8
    config.rollout.prompt_tokens = 96
    config.rollout.new_tokens = 112
    config.loss.normaliser = "token"
    config.loss.old_logp = "sampler"
    config.localiser.threshold = PRM_THRESHOLD
    config.optimizer.learning_rate = 2e-5
    config.optimizer.warmup_steps = 3
    config.optimizer.b2 = 0.98
    config.training.mini_batches = 2
    config.training.micro_batches = 3
    config.evaluation.problems = 64
    config.evaluation.ood_problems = 0
    config.evaluation.more_temperatures = (0.6,)
    config.evaluation.rows_at_once = 256
    config.checkpoint.every = 5
    config.samples.every = 5
    return config


# ---- published problems


GSM8K_SOURCE = {
    "path": "gsm8k",
    "config": "main",
    "fields": {"prompt": "question", "solution": "answer"},
    "answer_from": "hash",
}


def gsm8k() -> ConfigDict:
    """GSM8K with Qwen2.5-0.5B-Instruct.

    Not run with real weights here. The data set is read from TFDS, without TensorFlow; this makes
    it once, from the published files that it downloads:

        from tensorflow_datasets.text.gsm8k.gsm8k import Gsm8k
        Gsm8k(data_dir="data", file_format="array_record").download_and_prepare(
            file_format="array_record"
        )

    The repository openai/gsm8k on disk does as well: --config.task.train.gsm8k.path=DIR (config
    "main"), likewise for `evaluation.test`. docs/data.md has both.

    Methods with a teacher need models/Qwen2.5-1.5B-Instruct, with a PRM
    models/Qwen2.5-Math-PRM-7B.
    """
    config = _language_model()
    config.steps = 300
    config.task.train = {"gsm8k": {**GSM8K_SOURCE, "split": "train"}}
    config.task.evaluation = {"test": {**GSM8K_SOURCE, "split": "test"}}
    config.task.decontaminate = "report"
    config.models.policy = "models/Qwen2.5-0.5B-Instruct"
    config.rollout.prompt_tokens = 256
    config.rollout.new_tokens = 512
    config.training.micro_batches = 8
    config.evaluation.problems = 1319
    config.evaluation.rows_at_once = 512
    return config


def _language_model() -> ConfigDict:
    """What the tasks with a real model on mathematics have in common."""
    config = default_config()
    config.dtype = "bfloat16"
    config.task.name = "math"
    config.task.data = "data"
    config.rollout.prompts = 64
    config.rollout.group = 8
    config.rollout.chat = True
    config.optimizer.learning_rate = 1e-6
    config.optimizer.warmup_steps = 10
    config.evaluation.every = 50
    config.evaluation.samples = 4
    return config


MATH_TEST = {
    "test": {
        "path": "MATH-500",
        "split": "test",
        "fields": {"id": "unique_id", "prompt": "problem"},
    },
}


def math_1_5b() -> ConfigDict:
    """MATH levels 3-5 with Qwen2.5-Math-1.5B: group of 8, PRM Qwen2.5-Math-PRM-7B, a 7B teacher.

    Not run with real weights here: a starting point, written from the papers' settings and the
    published files. What stands where:

        models/Qwen2.5-Math-1.5B            the policy, a base model with 4,096 positions
        models/Qwen2.5-Math-7B-Instruct     the teacher
        models/Qwen2.5-Math-PRM-7B          the process reward model
        data/MATH-lighteval                 problem, level, type, solution; README.md, or
                                            data/train-00000-of-00001.parquet
        data/MATH-500                       problem, solution, answer, subject, level, unique_id

    On TPU slices (compiled and not run; seconds are floors where every row is as long as it may be;
    docs/scaling.md):

    python -m scope_jax.fit --config=scope,math_1_5b --topology=v5e:2x4

        program        GiB of 15.75  seconds   x  bound
        decode_layout    10.6 (67%)     0.02   1  network
        rollout          12.8 (81%)    24.92   1  HBM
        PRM               9.6 (61%)     0.51  32  compute
        teacher          13.0 (82%)     5.03   2  HBM
        tails            10.4 (66%)     7.21   2  HBM
        update           12.3 (78%)    13.95   1  compute
        rollout at most 63,119 tokens/s, update at most 75% of the peak, a step at least 80 s

    python -m scope_jax.fit --config=scope,math_1_5b --topology=v6e:2x4

        program        GiB of 31.24  seconds   x  bound
        decode_layout    10.6 (34%)     0.01   1  network
        rollout          12.8 (41%)    12.43   1  HBM
        PRM               9.6 (31%)     0.11  32  network
        teacher          14.0 (45%)     2.22   2  HBM
        tails            10.9 (35%)     3.51   2  HBM
        update           12.3 (40%)     3.93   1  HBM
        rollout at most 126,514 tokens/s, update at most 57% of the peak, a step at least 32 s
    """
    config = _language_model()
    config.steps = 500
    # Two key and value heads: the policy's cache can be split in two. The teacher has four.
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 1, -1, 2
    config.task.train = {
        "math": {
            "path": "MATH-lighteval",
            "fields": {"prompt": "problem"},
            "where": {"level": ("Level 3", "Level 4", "Level 5")},
            "answer_from": "boxed",
        }
    }
    config.task.evaluation = MATH_TEST
    config.task.decontaminate = "remove"
    config.models.policy = "models/Qwen2.5-Math-1.5B"
    config.rollout.prompt_tokens = 512
    config.rollout.new_tokens = 3072
    config.rollout.seats = 256
    config.training.micro_batches = 16
    # A notice of pre-emption is shorter than a rollout here, which a stop gives up: no more than
    # these steps are lost with it.
    config.checkpoint.every = 5
    config.evaluation.problems = 500
    config.evaluation.temperature = 0.6
    config.evaluation.rows_at_once = 256
    return config


def math_7b() -> ConfigDict:
    """The paper's setting: Qwen2.5-Math-7B on MATH levels 3-5, group of 8, PRM Qwen2.5-Math-PRM-7B,
    a 72B teacher.

    Not run with real weights. Only the abstract and public summaries of the paper were used
    (docs/method.md): steps, batch and learning rate are those of its field. Files as of
    `math_1_5b`, with models/Qwen2.5-Math-7B and models/Qwen2.5-Math-72B-Instruct.

    On TPU slices (as for `math_1_5b`):

    python -m scope_jax.fit --config=scope,math_7b --topology=v5p:4x4x4

        program        GiB of 95.73  seconds   x  bound
        decode_layout    30.8 (32%)     0.01   1  network
        rollout          29.9 (31%)     8.27   1  HBM
        PRM              26.9 (28%)     0.03  64  compute
        teacher          40.1 (42%)     8.94   1  compute
        tails            28.7 (30%)     5.21   1  HBM
        update           30.3 (32%)     6.64   1  compute
        rollout at most 380,425 tokens/s, update at most 75% of the peak, a step at least 31 s

    python -m scope_jax.fit --config=scope,math_7b --topology=v6e:8x8 \
        --config.models.teacher=models/Qwen2.5-32B-Instruct

        program        GiB of 31.24  seconds   x  bound
        decode_layout    21.5 (69%)     0.03   1  network
        rollout          20.6 (66%)    12.32   1  HBM
        PRM              17.6 (56%)     0.05  64  network
        teacher          24.6 (79%)     6.26   1  HBM
        tails            19.9 (64%)     8.04   1  HBM
        update           20.9 (67%)     5.72   1  network
        rollout at most 255,386 tokens/s, update at most 44% of the peak, a step at least 36 s

    With the 72B teacher v6e:8x8 is too small, or full to 98 % with parts parked: docs/scaling.md
    says why.
    """
    config = math_1_5b()
    config.models.policy = "models/Qwen2.5-Math-7B"
    # Four key and value heads; the teacher has eight.
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = -1, 4, 4
    config.rollout.prompts = 128
    config.rollout.seats = None
    return config


def math_30b_a3b() -> ConfigDict:
    """A mixture of experts: Qwen3-30B-A3B on MATH levels 3-5, teacher Qwen3-32B, PRM
    Qwen2.5-Math-PRM-7B.

    Not run with real weights here: a starting point. Files as of `math_1_5b`, with
    models/Qwen3-30B-A3B and models/Qwen3-32B. Sixteen of the 128 experts on each device. For TPUs
    (docs/models.md says why): 52 s a step at least on v5p:4x4x4 (docs/scaling.md).
    """
    config = math_7b()
    config.models.policy = "models/Qwen3-30B-A3B"
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 1, -1, 1
    config.mesh.expert = 8
    return config


# ---- problems of a program


def reasoning_gym() -> ConfigDict:
    """A generator of reasoning-gym with Qwen2.5-0.5B-Instruct; another one by
    --config.task.options.dataset=NAME, a mixture by task.train (docs/reasoning_gym.md).

    Not run with real weights here. Methods with a teacher need models/Qwen2.5-1.5B-Instruct, with a
    PRM models/Qwen2.5-Math-PRM-7B.
    """
    config = _language_model()
    config.steps = 300
    config.task.name = "reasoning_gym"
    config.task.data = None
    config.task.options = {"dataset": "chain_sum", "settings": {}}
    config.models.policy = "models/Qwen2.5-0.5B-Instruct"
    config.rollout.prompt_tokens = 512
    config.rollout.new_tokens = 512
    config.training.micro_batches = 8
    config.evaluation.problems = 500
    config.evaluation.rows_at_once = 512
    return config


def _mesh_of_teacher(data: int, fsdp: int, tensor: int) -> dict[str, int]:
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    return {f"mesh.teacher.{axis}": size for axis, size in sizes.items()}


# Qwen2.5-Math-PRM: 0.8 was reported as tuned (arXiv 2601.18984).
QWEN_PRM = {"models.prm": "models/Qwen2.5-Math-PRM-7B", "localiser.threshold": 0.8}

TASKS = {
    "arithmetic": Task(
        arithmetic,
        teacher={"models.teacher": f"{CACHE}/teacher"},
        prm={"models.prm": f"{CACHE}/prm"},
        rescue={"teacher.step_tokens": 8},
    ),
    "arithmetic_long": Task(
        arithmetic_long,
        teacher={"models.teacher": f"{CACHE}/arithmetic_long/teacher"},
        prm={"models.prm": f"{CACHE}/arithmetic_long/prm"},
        rescue={"teacher.step_tokens": 8},
    ),
    "countdown": Task(
        countdown,
        teacher={"models.teacher": f"{CACHE}/countdown/teacher"},
        prm={"models.prm": f"{CACHE}/countdown/prm"},
    ),
    "countdown_six": Task(
        countdown_six,
        teacher={"teacher.kind": "program"},
        prm={"localiser.kind": "oracle"},
    ),
    "algebra": Task(
        algebra,
        teacher={"models.teacher": f"{CACHE}/algebra/teacher"},
        prm={
            "localiser.kind": "function",
            "localiser.function": "scope_jax.tasks.check_algebra:first_wrong",
        },
    ),
    "word_problems": Task(
        word_problems,
        teacher={"models.teacher": f"{CACHE}/word_problems/teacher"},
        prm={"models.prm": f"{CACHE}/word_problems/prm", "localiser.threshold": PRM_THRESHOLD},
        # The teacher finds more first errors than the PRM (docs/real.md).
        rescue={
            "teacher.step_tokens": 32,
            "models.prm": None,
            "localiser.kind": "likelihood",
            "localiser.threshold": 0.86,
        },
    ),
    "gsm8k": Task(
        gsm8k,
        teacher={"models.teacher": "models/Qwen2.5-1.5B-Instruct"},
        prm=QWEN_PRM,
        rescue={"teacher.step_tokens": 128},
    ),
    "reasoning_gym": Task(
        reasoning_gym,
        teacher={"models.teacher": "models/Qwen2.5-1.5B-Instruct"},
        prm=QWEN_PRM,
        rescue={"teacher.step_tokens": 128},
    ),
    "math_1_5b": Task(
        math_1_5b,
        teacher={"models.teacher": "models/Qwen2.5-Math-7B-Instruct", **_mesh_of_teacher(-1, 1, 4)},
        prm=QWEN_PRM,
        # Prefixes of up to 3,584 tokens: this many at a time, for the teacher's sake on the small
        # chips of v5e.
        rescue={"teacher.step_tokens": 512, "method.rows_at_once": 64},
    ),
    "math_7b": Task(
        math_7b,
        teacher={
            "models.teacher": "models/Qwen2.5-Math-72B-Instruct",
            **_mesh_of_teacher(-1, 1, 8),
        },
        prm=QWEN_PRM,
        rescue={"teacher.step_tokens": 512},
    ),
    "math_30b_a3b": Task(
        math_30b_a3b,
        teacher={"models.teacher": "models/Qwen3-32B", **_mesh_of_teacher(-1, 1, 8)},
        prm=QWEN_PRM,
        rescue={"teacher.step_tokens": 512},
    ),
}
