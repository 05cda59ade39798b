"""The rules by which answers are read: what verdicts and votes have in common.

In: the text of an answer. Out: its one spelling (`spelling`), its exact value where it is a
rational number (`rationals`), its unit (`units`), and all of that together (`readings`), which
says whether two answers are equal as far as text and numbers tell. What is left is for sympy
(`symbolic`, in worker processes only).

Everything but `symbolic` needs the standard library alone, and imports are relative: the worker
loads this folder by its path, without the packages around it, which would bring in JAX.
"""

VERSION = 2
"""Of the rules. It goes up whenever a verdict can change, and is written into the record of an
evaluation: figures with different numbers are not comparable."""
