"""Supervised training, in its stages: demonstrations as batches, rollouts labelled step by step.

In: problems, a tokenizer, a policy. Out: batches of tokens with weights, labels of steps.
The loop is `scope_jax.supervise`.
"""
