"""Upload the model of a finished run to the Hugging Face hub, with a card of how it was made.

In: the workdir of a run. Out: `model/README.md`, a repository.
"""
