"""The parts of `benchmarks/accelerator.py`: what is measured (`plan`), the processes that measure
(`processes`, `worker`), the limits that figures are held against (`limits`), the parts themselves,
and the table of what they found (`table`)."""
