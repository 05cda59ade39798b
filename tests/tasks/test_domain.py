"""What a domain says about itself."""

from scope_jax.tasks import Arithmetic, Countdown, Domain, Mathematics


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
