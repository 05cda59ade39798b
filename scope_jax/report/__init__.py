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
    powers_up_to,
    rarefied_distinct_n,
    rarefied_paths,
    self_bleu,
)
from scope_jax.report.page import Report, write_report
from scope_jax.report.run_page import write_run_report
from scope_jax.report.sample_files import SampleFile, read_sample_file
from scope_jax.report.trouble import Watch

__all__ = [
    "Report",
    "SampleFile",
    "SampleGroup",
    "Watch",
    "answer_entropy",
    "distinct_n",
    "distinct_paths",
    "equation_diversity",
    "group_metrics",
    "mean_and_standard_error",
    "pass_at_k",
    "powers_up_to",
    "rarefied_distinct_n",
    "rarefied_paths",
    "read_sample_file",
    "self_bleu",
    "write_report",
    "write_run_report",
]
