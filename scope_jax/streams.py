"""Every stream of random numbers of a training run, in one table: no two of them collide.

**On the devices.** A run has one root key, `jax.random.key(config.seed)`. Step number n works under
`fold_in(root, n)`, n = 0, 1, 2, ...; a token is drawn under step key -> stream -> row id ->
position.

    folded into the root key     what it is for
    0, 1, 2, ...                 the steps
    LORA                         the adapters' first weights

    folded into a step's key     what it is for                          taken
    ROLLOUT                      the policy's rows                       0
    TEACHER                      the teacher's one step                  1
    TAIL + attempt               what follows it                         from 2 on, one per attempt
    DEMONSTRATION                whole solutions of the teacher          2^19
    MONTE_CARLO + round          continuations of prefixes               from 2^20 on, one per round
    ORDER -> epoch               order of the groups in an epoch         2^21
    SELF + attempt               the policy's own repairs                from 2^22 on, likewise
    CANDIDATE + number           a key of its own for the further steps  from 2^23 on
                                 of the teacher and their tails, with
                                 the streams TEACHER and TAIL under it

So there is room for 2^19 - 2 attempts and 2^20 rounds. Labelled rollouts and evaluations have
root keys of their own, and use the same streams.

**On the host.** `host_rng(seed, stream, ...)` draws from `[seed, stream, ...]`. In a step `seed` is
`step_seed(config.seed, step)`, a hash, so what a step draws is apart from what the run draws with
its own seed. Where a step has several rounds of dynamic sampling, each later one has a seed of its
own in its place (`round_seed`). Seeds of the problems are other lists: `[seed, epoch]` for their
order (it permutes a data set and draws nothing else; only epochs 7 and 8 of a supervised run share
a seed with its batches), `[seed, split, index, sizes]` for a generated problem. The seed of a step
alone ranks the rows of the selection rule `random` (`rank_rng`). `request_seed(seed, row)` goes to
an endpoint's sampler.
"""

import enum

import numpy as np

# Folded into the root key. Step keys are 0, 1, 2, ...; this value never collides with one.
LORA = 2**31 - 1

# Seeds of the rollouts whose steps are labelled: of their root key, and of fresh problems.
LABELLED = {"train": 11, "held_out": 12}

# Folded into a step's key.
ROLLOUT = 0
TEACHER = 1
TAIL = 2
DEMONSTRATION = 1 << 19
MONTE_CARLO = 1 << 20
ORDER = 1 << 21
SELF = 1 << 22
CANDIDATE = 1 << 23


class Host(enum.IntEnum):
    """Streams of the host's random numbers. Those of batches take the seed of a supervised run, all
    others that of a step."""

    PLACE = 1  # which failure an accepted row replaces (method.place)
    PROGRAM_STEP = 2  # a step by a program; then the row's id
    NOISE = 3  # errors moved on purpose (localiser.noise)
    PROGRAM_SOLUTION = 4  # a solution by a program; then the row's id
    ENDPOINT_SOLUTION = 5  # a solution by an endpoint; then the problem's number
    CANDIDATE = 6  # seeds of a teacher's further steps; then the candidate's number
    DEMONSTRATION_BATCHES = 7  # problems and styles of supervised batches
    LABELLED_BATCHES = 8  # rows of the batches of a process reward model
    ROUND = 9  # seeds of a step's later rounds (method.resample of SCOPE); then the round's number


def step_seed(seed: int, step: int) -> int:
    """The seed of what the host draws in a step."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])


def candidate_seed(seed: int, number: int) -> int:
    """The seed of what the host draws for candidate `number` of a step's corrections."""
    return int(np.random.SeedSequence([seed, int(Host.CANDIDATE), number]).generate_state(1)[0])


def host_rng(seed: int, stream: Host, *more: int) -> np.random.Generator:
    """The generator of one of the host's streams."""
    return np.random.default_rng([seed, int(stream), *more])


def round_seed(seed: int, number: int) -> int:
    """The seed that takes the place of a step's `seed` in its round `number` of dynamic sampling,
    from 1 on; below 2^32."""
    return int(host_rng(seed, Host.ROUND, number).integers(2**32))


def rank_rng(seed: int) -> np.random.Generator:
    """The generator that ranks the rows of a step, from the step's seed."""
    return np.random.default_rng(seed)


def request_seed(*numbers: int) -> int:
    """A seed, below 2^31, for a server that samples."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0] >> 1)
