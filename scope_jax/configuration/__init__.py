"""Settings: every one of a program, with its default, its meaning and its checks.

In: a config file's `ConfigDict` and the overrides of a command line. Out: a typed, frozen tree,
`TrainConfig` or `SuperviseConfig`, made once at the entry and handed down.
"""

from scope_jax.configuration.methods import METHODS, Luffy, Process, Pure, Relift, Scope, Vppo
from scope_jax.configuration.training import (
    TrainConfig,
    default_config,
    set_method,
    train_config,
)

__all__ = [
    "METHODS",
    "Luffy",
    "Process",
    "Pure",
    "Relift",
    "Scope",
    "TrainConfig",
    "Vppo",
    "default_config",
    "set_method",
    "train_config",
]
