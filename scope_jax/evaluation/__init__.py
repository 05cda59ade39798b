"""Evaluation on published suites: the settings of a suite, its samples, their scores.

In: a policy, the problems of a suite (`data.suites`), `Settings`. Out: one record, and a file of
results that a stopped evaluation goes on from.
"""

from scope_jax.evaluation.settings import KINDS, Settings, settings_for
from scope_jax.evaluation.suite import (
    EvaluatedModel,
    Weigher,
    check_suite,
    evaluate_suite,
    step_weights,
)

__all__ = [
    "KINDS",
    "EvaluatedModel",
    "Settings",
    "Weigher",
    "check_suite",
    "evaluate_suite",
    "settings_for",
    "step_weights",
]
