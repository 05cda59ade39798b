"""Experiments, one Python file each with the command and what was measured; `scope_jax.configs`."""
