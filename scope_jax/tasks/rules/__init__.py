"""The rules by which answers are read: what verdicts and votes have in common.

In: the text of an answer. Out: its one spelling, its exact value where it is a rational number, its
unit; whether two answers are equal as far as these tell, and by sympy (`symbolic`) where not.
All but `symbolic` needs the standard library alone. Imports are relative: worker processes load
this folder by its path, without the packages around it, which would bring in JAX.
"""

VERSION = 2
"""Of the rules. It goes up whenever a verdict can change, and is written into the record of an
evaluation: figures with different numbers are not comparable."""
