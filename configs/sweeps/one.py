r"""One run of a sweep, by itself: the config that the sweep gives it.

python -m scope_jax.train --workdir=runs/one \
    --config=configs/sweeps/one.py:configs/sweeps/ablations.py:arithmetic/ablation_no_tail/seed_0

The words behind the first colon: the sweep file, and the name of the run. This prints the names:

python -m scope_jax.sweep --list --sweep=configs/sweeps/ablations.py \
    --workdir=runs/ablations --records=docs/records/ablations

launch/sweep_slice.sh starts the runs of a sweep like this.
"""

from scope_jax.sweep.runs import run_config


def get_config(which: str = ""):
    return run_config(which)
