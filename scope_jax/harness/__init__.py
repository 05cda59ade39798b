"""Evaluate a model on the tasks of lm-eval, EleutherAI's harness.

Its log-likelihoods and texts come from the programs that training scores and samples with.

In: a Hugging Face directory, lm-eval's requests. Out: what lm-eval makes of the answers. Importing
it is cheap: `harness.model` alone imports lm-eval.
"""
