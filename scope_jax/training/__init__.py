"""One step of reinforcement learning, in its stages.

In: actors, problems, a key. Out: rollouts with verdicts, advantages, updated parameters.
The loop that plays the stages is `scope_jax.train`.
"""
