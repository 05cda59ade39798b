"""What a process reward model is trained from: a trunk, with a two-class head and a step mark.

A trunk whose tokenizer has no step mark gets it as a token of its own: on a free row of the
embedding, or, where every row is taken, on a row that is added. Only the embedding grows, as a
two-class head does not look at the vocabulary.
"""

import dataclasses
from typing import Any

import jax

from scope_jax import models
from scope_jax.data.prompts import check_vocabulary
from scope_jax.prm import ProcessRewardModel
from scope_jax.supervision.batches import with_step_mark
from scope_jax.text import load_tokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class PrmStart:
    """A process reward model before its training."""

    directory: str  # of the trunk
    config: models.ModelConfig  # of the process reward model
    tokenizer: Any  # with the step mark
    scorer: ProcessRewardModel  # without weights

    @property
    def added_rows(self) -> int:
        """Rows that the embedding gets for the step mark."""
        return self.config.vocab_size - models.read_config(self.directory).vocab_size

    def params(self, dtype: str, seed: int, mesh: jax.sharding.Mesh) -> models.Params:
        """The trunk's weights and a fresh head, laid out on `mesh`."""
        trunk = models.load(self.directory, dtype=dtype, mesh=mesh)[1]
        embed = models.with_more_rows(trunk["embed"], self.config, mesh)
        fresh = models.init(self.config, jax.random.key(seed), dtype, mesh=mesh)
        return {name: trunk.get(name, value) for name, value in fresh.items()} | {"embed": embed}


def prm_start(directory: str) -> PrmStart:
    """The start of a process reward model on the model of a Hugging Face directory; reads no
    weights. Raises ValueError or FileNotFoundError, naming the directory, where its config,
    tokenizer or chat template cannot be used."""
    trunk = models.read_config(directory)
    tokenizer = load_tokenizer(directory)
    check_vocabulary(tokenizer, trunk.vocab_size, directory)
    tokenizer, mark = with_step_mark(tokenizer, directory)
    config = models.with_room_for(trunk.with_head("prm"), mark)
    try:
        scorer = ProcessRewardModel({}, config, tokenizer)
        ids, marks = scorer.encode("1+1?", ["2"])
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from error
    if [ids[place] for place in marks] != [mark]:
        raise ValueError(
            f"{directory}: its tokenizer does not keep the step mark apart: a solution of one step"
            f" has the ids {ids}, token {mark} should be once among them"
        )
    return PrmStart(directory, config, tokenizer, scorer)
