"""Does SCOPE pay with this policy, PRM and teacher? Measured before any training.

In: a config of a SCOPE run. Out: what its first batches hold, a table, an opinion.
`python -m scope_jax.prospect`.
"""
