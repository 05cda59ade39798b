"""A training run: METHOD,TASK.

    python -m scope_jax.train --config=scope,arithmetic --workdir=runs/scope
    python -m scope_jax.train --config=configs/run.py:luffy,gsm8k --workdir=runs/luffy

Both forms are the same. Methods and what was measured with them: methods.py. Tasks, the checkpoints
that they need and how those are made: tasks.py. Every method runs on every task (but on-policy
distillation on countdown_six: it asks for a teacher that is a model, and there it is a program).
"""

import difflib

from scope_jax.configs.methods import METHODS
from scope_jax.configs.tasks import TASKS


def get_config(words: str = "scope,arithmetic"):
    """The config of METHOD,TASK. Raises ValueError for an unknown one, with the nearest name."""
    method, _, task = words.partition(",")
    if not task:
        raise ValueError(f"{words}: the task is missing, as in {words},arithmetic")
    for name, known, what in ((method, METHODS, "method"), (task, TASKS, "task")):
        if name not in known:
            near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]
            raise ValueError(
                f"{words}: {what} {name!r} is unknown, the nearest is {near!r}; expected"
                f" METHOD,TASK with a method of {', '.join(METHODS)} and a task of"
                f" {', '.join(TASKS)}"
            )
    config = TASKS[task].config()
    METHODS[method](config, TASKS[task])
    return config
