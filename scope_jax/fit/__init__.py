"""Does a config fit a TPU slice or GPUs? Its programs compiled without either.

In: a config and a topology. Out: bytes, seconds at the roofline, warnings.
`python -m scope_jax.fit`.
"""
