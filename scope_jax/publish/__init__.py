"""Upload the model of a finished run, with a card, to the Hugging Face hub.

In: the workdir of a run. Out: `model/README.md`, a repository.
"""
