"""What a run shows: diversity and pass@k of samples, tables, charts, one HTML page.

In: sampled texts and verdicts, lines of metrics, rescued rollouts. Out: numbers and files for
people to read.
"""

from scope_jax.report.diversity import (
    SampleGroup,
    answer_entropy,
    distinct_n,
    distinct_paths,
    equation_diversity,
    group_metrics,
    mean_and_standard_error,
    pass_at_k,
    self_bleu,
)
from scope_jax.report.page import Report, write_report, write_run_report

__all__ = [
    "Report",
    "SampleGroup",
    "answer_entropy",
    "distinct_n",
    "distinct_paths",
    "equation_diversity",
    "group_metrics",
    "mean_and_standard_error",
    "pass_at_k",
    "self_bleu",
    "write_report",
    "write_run_report",
]
