"""What a domain says about itself."""

import numpy as np
import pytest

from scope_jax.tasks import Arithmetic, Countdown, Domain, Mathematics, Problem
from scope_jax.tasks.domain import verdicts


class Told(Domain):
    """A domain with a verifier, and steps by a program."""

    name, separator = "told", "\n"

    def verify(self, problems, completions):
        return [True] * len(problems)

    def next_step(self, problem, steps, rng, style, wrong_step=None):
        return None


def test_what_a_domain_can_do():
    assert Arithmetic().writes_steps and Arithmetic().checks_steps
    assert Countdown().writes_steps and Countdown().checks_steps
    assert not Mathematics().writes_steps and not Mathematics().checks_steps
    assert Told().writes_steps and not Told().checks_steps
    assert Arithmetic().finds_paths and Countdown().finds_paths
    assert not Mathematics().finds_paths and not Told().finds_paths


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([True], "expected a list of 2 verdicts, one for each completion, found 1"),
        ([], "one for each completion, found 0"),
        ([True] * 3, "one for each completion, found 3"),
        (None, "expected a list of 2 verdicts, found NoneType"),
        (True, "found bool"),
        ("no", "found str"),
        (iter([True, False]), "found list_iterator"),
        ([True, 2.0], "partial credit from 0 to 1; number 1 is 2.0"),
        ([True, "no"], "each True, False or None; number 1 is 'no'"),
        ([[True], None], r"number 0 is \[True\]"),
    ],
)
def test_verdicts_of_another_number_or_kind_are_refused(found, message):
    domain, problem = Told(), Problem("1", "p", "a")
    domain.verify = lambda problems, completions: found
    with pytest.raises(ValueError, match=f"domain 'told': verify: .*{message}"):
        verdicts(domain, [problem] * 2, ["a", "b"])


@pytest.mark.parametrize("found", [[True, None], (1, None), np.array([True, None])])
def test_verdicts_are_plain(found):
    domain = Told()
    domain.verify = lambda problems, completions: found
    (one, none) = verdicts(domain, [Problem("1", "p", "a")] * 2, ["a", "b"])
    assert one == 1 and none is None
    domain.verify = lambda problems, completions: np.array([True, False])
    one, other = verdicts(domain, [Problem("1", "p", "a")] * 2, ["a", "b"])
    assert one is True and other is False
