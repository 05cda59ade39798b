"""Correct failed rollouts of any trainer at their first wrong step, for training.

In: JSON lines of rollouts with their rewards, in the field names of several trainers. Out: mixed
rollouts with the owner of every token, preference pairs, step labels; counts of all that happened.
"""
