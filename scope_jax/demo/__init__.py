"""GRPO and SCOPE from the same base, compared: make demo, make real.

In: nothing, or a model. Out: two or three runs for each seed, a table, a page.
`python -m scope_jax.demo`.
"""
