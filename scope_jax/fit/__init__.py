"""Does a config fit a slice? Its programs compiled for devices that are not here.

In: a config and a topology. Out: bytes, seconds at the roofline, warnings.
`python -m scope_jax.fit`.
"""
