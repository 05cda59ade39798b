"""What the figures say, in a few lines.

The thresholds rest on little: runs of policies of a third of a million parameters on a few small
tasks (docs/results.md), and the first batches of those runs in docs/records. SCOPE was ahead of
GRPO by 3.9 points of pass@1 on signed terms and by 1.4 on Countdown (20 seeds each), and by some
thirty on long signed terms for as long as most groups failed; once GRPO had found the way by
itself the lead was gone. They say where the figures at hand stand beside those runs; they predict
no gain, and for models of another size nobody has measured them.
"""

from scope_jax.prospect.figures import Figures, Rescues

MIN_ROWS = 20
"""Of fewer rows nothing is said: the standard error of a share of one half is 0.11 with 20."""

MOST = 0.5
"""Most: a word's meaning, not a measurement. Countdown's base errs in the first step in 0.62 of its
failures by the step check, and SCOPE was ahead there all the same, by a third of what it was ahead
by on signed terms."""

FEW_DEAD = 0.2
"""Groups that failed altogether. The main comparisons began with 0.47 to 0.66 of their groups
without an advantage (long signed terms 0.65, means over seeds), nearly all of them failed; no
condition began below 0.31, and there the lead was not resolved.
On signed terms the share fell below 0.1 within a dozen batches of GRPO, and the lead shrank after
that: 0.64 against 0.51 of pass@1 after 30 updates, 0.75 against 0.67 after 50
(docs/embedded_task.md; one seed)."""

SALVAGE_AHEAD = 0.24
"""Salvage rate of the first batch in the runs that ended ahead of GRPO: 0.51 on signed terms, 0.34
on long ones, 0.24 to 0.26 on Countdown, means over seeds. One batch of some 27 chosen rows
scatters: 0.07 to 0.40 on Countdown. It is not enough: Countdown with six numbers, whose skill that
size of model seems not to learn, begins with 0.41 and ends level (+0.6 +- 2.2 points on three
seeds)."""

SALVAGE_LEVEL = 0.10
"""The same of runs in which the policy corrected itself: 0.10 and 0.09, and level with GRPO (+0.6
+- 4.3 and +0.4 +- 1.7 points on five seeds each). A teacher that could not go on from other
people's lines came to 0.07 to 0.15, and to no gain (docs/embedded_task.md)."""

EXACT = 0.5
"""First errors found exactly. With half of the errors misplaced on purpose SCOPE lost nothing on
signed terms (+0.6 +- 1.8 points) and hardly anything on Countdown (-0.8 +- 1.2); below that
nothing was tried."""

LATER = 0.1
"""First errors found too late: the cut keeps the error. Every PRM of docs/prm.md stays at or below
0.05; that of Countdown was at 0.25, with the smaller lead."""

FALSE_ALARMS = 0.5
"""Right rows in which an error is found. The PRMs of docs/prm.md leave 0.62 to 0.81 of them clean,
but for one of 0.38, which places its cuts too early on failures too."""

NAMES = {
    "prm": "the PRM",
    "likelihood": "the teacher's likelihood",
    "oracle": "the step check",
    "monte_carlo": "Monte Carlo",
}

RESTS_ON = (
    "These lines compare with a few small tasks (docs/results.md): they say what is like those runs"
    " and what is not, not how much will be gained."
)


def opinion(figures: Figures) -> list[str]:
    """The lines: whether GRPO has a signal, what there is to keep, how well the localiser finds the
    error, whether rescues succeed; and what that rests on."""
    if figures.policy.failed < MIN_ROWS:
        return [
            f"Only {figures.policy.failed} failures: too few to say more than that there is little"
            f" to rescue here; measure more problems (--problems).",
            RESTS_ON,
        ]
    lines = [signal(figures), beginnings(figures), trust(figures), success(figures)]
    return [line for line in lines if line] + [RESTS_ON]


def signal(figures: Figures) -> str:
    """Whether groups tell GRPO something by themselves."""
    policy = figures.policy
    dead, right = policy.all_failed / policy.problems, policy.all_right / policy.problems
    said = f"Groups all failed: {percent(dead)}"
    if right > MOST:
        return (
            f"Groups all right: {percent(right)}. Most problems are too easy for this policy, and"
            " no rescue changes that: take harder ones."
        )
    if dead < FEW_DEAD:
        return (
            f"{said}. GRPO learns already: SCOPE's lead was made while more of them failed, and no"
            " run measured began with so few."
        )
    if dead >= MOST:
        return (
            f"{said}. GRPO learns nothing from most groups; this is where SCOPE was ahead, far"
            " ahead where it lasted, and level once GRPO had found the way by itself."
        )
    return f"{said}. GRPO learns from the others; there is room for rescues."


def beginnings(figures: Figures) -> str:
    """Whether failures have a good beginning to keep."""
    rescues, places = figures.rescues, figures.checked or figures.found
    by = "the step check" if figures.checked else name(figures)
    looked_at = max(figures.policy.failed - rescues.elsewhere, 1)
    if rescues.cut_off / looked_at > MOST:
        return (
            f"Most failures ({percent(rescues.cut_off / looked_at)}) were cut off by"
            " length and cannot be rescued: raise rollout.new_tokens, or see whether the policy"
            " ends its answers."
        )
    if places.rows < MIN_ROWS:
        return f"Only {places.rows} failures have a first error by {by}: too few to say where."
    first = places.first_step / places.rows
    if first > MOST:
        return (
            f"Most failures ({percent(first)}, by {by}) err in the first step: nothing to keep."
            " With 62 % on Countdown SCOPE was ahead, by little."
        )
    return f"{percent(1 - first)} of the failures have a good step before the error (by {by})."


def trust(figures: Figures) -> str:
    """How well the localiser finds the first error."""
    who, found = name(figures), figures.precision
    if figures.localiser == "oracle":
        return ""
    if found is None or found.errors < MIN_ROWS:
        if figures.right_asked < MIN_ROWS:
            return f"Whether {who} is right cannot be said here: nothing checks its first errors."
        flagged = figures.right_flagged / figures.right_asked
        alarm = (
            " It doubts most right rows: its cuts will come too early."
            if (flagged > FALSE_ALARMS)
            else ""
        )
        return (
            f"Nothing checks the first errors of {who} here; it finds one in {percent(flagged)} of"
            f" the right rows.{alarm}"
        )
    exact, later = found.exact / found.errors, found.later / found.errors
    said = f"{capital(who)} finds {percent(exact)} of the first errors exactly"
    if exact < EXACT:
        said += ": fewer than in any run measured"
    if later > LATER:
        said += (
            f"; {percent(later)} too late, which keeps the error in the row: raise"
            " localiser.threshold"
        )
    if found.clean >= MIN_ROWS and found.false_alarms / found.clean > FALSE_ALARMS:
        said += f"; it doubts {percent(found.false_alarms / found.clean)} of the right rows"
    return said + "."


def success(figures: Figures) -> str:
    """Whether rescues succeed, and what they change."""
    rescues = figures.rescues
    if rescues.selected < MIN_ROWS:
        return (
            f"Only {rescues.selected} failures were chosen for a rescue: too few for a salvage"
            " rate; measure more problems (--problems), or see above why so few can be chosen."
        )
    rate = salvage(rescues)
    said = f"Salvage rate {rate:.2f}"
    if rate >= SALVAGE_AHEAD:
        said += ": as in the first batches of runs that ended ahead of GRPO (0.51, 0.34 and 0.24),"
        said += " and of one task, Countdown with six numbers (0.41), that ended level with it"
    elif rate <= SALVAGE_LEVEL:
        said += (
            ": as where the policy corrected itself and ended level with GRPO (0.10); look at the"
            " teacher first"
        )
    else:
        said += ": between the runs that were ahead of GRPO (0.24 and more) and those level with it"
        said += " (0.10)"
    before, after = percent(figures.dead_before), percent(figures.dead_after)
    said += f". Groups without an advantage: {before} before, {after} after."
    if figures.dead_after > figures.dead_before:
        said += " Rescues make whole groups right: set method.select.keep_failure."
    return said


def salvage(rescues: Rescues) -> float:
    """Rescued rows of those that were chosen; 0 where none was."""
    return rescues.rescued / max(rescues.selected, 1)


def name(figures: Figures) -> str:
    """The localiser, in words."""
    return NAMES.get(figures.localiser, figures.localiser.rpartition(":")[2])


def capital(text: str) -> str:
    """With a capital letter."""
    return text[:1].upper() + text[1:]


def percent(share: float) -> str:
    """A share as a whole number of percent; what is neither none nor all is not rounded to it."""
    rounded = round(100 * share)
    if rounded == 0 and share > 0:
        return "<1 %"
    if rounded == 100 and share < 1:
        return ">99 %"
    return f"{rounded} %"
