"""What each method changes in a task's config. `make demo` and the sweeps measure them; figures are
of the embedded task, signed terms, +- the standard deviation over three seeds
(docs/embedded_task.md).
"""

from scope_jax.configs.tasks import Task, change
from scope_jax.configuration import set_method


def policy_gradient(config, task: Task):
    """Plain policy gradient: mean over tokens, no standard deviation, clip-higher. SCOPE's own
    objective with nothing corrected, the control of `make demo`.

    Measured (as `scope` below): pass@1 0.566 +- 0.025, pass@8 0.992, distinct paths 4.01; longer
    problems 0.403 / 0.963. At temperature 0.6: 0.756 +- 0.026 / 0.997; longer problems 0.614.
    """


def scope(config, task: Task):
    """SCOPE (arXiv 2602.24110): failures rescued at their first wrong step.

    Measured (`make demo`: seeds 0, 1, 2; 1,000 problems): pass@1 0.680 +- 0.014, pass@8 0.998,
    distinct paths 4.83; longer problems 0.511 / 0.985; salvage rate 0.51. At temperature 0.6:
    0.890 +- 0.016 / 0.999; longer problems 0.775.
    """
    set_method(config, "scope")
    change(config, task.teacher, task.prm, task.rescue)


def scope_plus(config, task: Task):
    """SCOPE+: no longer the paper's method. Only groups that failed altogether are rescued, one
    failure of each, and groups that are without an advantage after that are drawn again.

    Measured (long signed terms, ten seeds, temperature 0.6, equal tokens, against GRPO): 11.5 +-
    7.0 points early in the run, 0.5 +- 3.5 later, where SCOPE has 27.9 +- 7.1 and -0.5 +- 5.7; on a
    weaker base, with all of the tokens, 30.9 +- 15.7, where SCOPE has 34.1 +- 14.5; a tenth of
    SCOPE's teacher tokens (configs/sweeps/hypothesis.py).
    """
    scope(config, task)
    config.method.select.groups = "all_failed"
    config.method.select.per_group = 1
    config.method.resample = 2


def self_correction(config, task: Task):
    """SCOPE with the policy itself in the teacher's place: it draws the wrong step again, and the
    verifier decides.

    A policy that can read a prompt is shown the wrong step and the reference answer too, with
    `teacher.template = "wrong_step_and_answer"`; those of the embedded tasks read digits only.
    """
    set_method(config, "scope")
    change(config, task.prm, task.rescue)
    config.teacher.kind = "self"
    config.teacher.temperature = 1.0
    config.loss.teacher_weight = 0.0


def grpo(config, task: Task):
    """GRPO (arXiv 2402.03300): advantages over the group's standard deviation, loss averaged per
    row.

    Measured (`make demo`: seeds 0, 1, 2; 1,000 problems): pass@1 0.586 +- 0.011, pass@8 0.993,
    distinct paths 4.19; longer problems 0.431 / 0.968. At temperature 0.6: 0.788 +- 0.026 / 0.998;
    longer problems 0.655. The base: 0.115 / 0.432, 0.048 / 0.265; 0.122 at temperature 0.6.
    """
    config.advantage.std = True
    config.loss.normaliser = "sequence"
    config.loss.clip_high = 0.2


def dr_grpo(config, task: Task):
    """Dr.GRPO (arXiv 2503.20783): no standard deviation, loss over a constant number of tokens."""
    config.loss.normaliser = "constant"
    config.loss.clip_high = 0.2


def dapo(config, task: Task):
    """DAPO (arXiv 2503.14476): clip-higher, dynamic sampling, token mean, soft overlong punishment.

    Dynamic sampling rolls out up to three batches of prompts for one update: `rollout/batches` says
    how many.
    """
    config.method.resample = 2
    config.advantage.std = True
    config.advantage.overlong_tokens = -(-config.rollout.new_tokens // 10)  # a tenth, rounded up
    config.loss.normaliser = "token"
    config.loss.clip_low, config.loss.clip_high = 0.2, 0.28


def gspo(config, task: Task):
    """GSPO (arXiv 2507.18071): one ratio per row, clipped in a narrow band."""
    config.advantage.std = True
    config.loss.ratio = "sequence"
    config.loss.normaliser = "sequence"
    config.loss.clip_low, config.loss.clip_high = 3e-4, 4e-4


def rloo(config, task: Task):
    """RLOO (arXiv 2402.14740): a row is compared with the mean of the others of its group; a row is
    one action, so its tokens are summed and not averaged; no clip."""
    config.advantage.baseline = "leave_one_out"
    config.loss.normaliser = "constant"
    config.loss.clip_low = config.loss.clip_high = None


def reinforce_pp(config, task: Task):
    """REINFORCE++ with baseline (arXiv 2501.03262): the group's mean is subtracted, then all rows
    of the batch are divided by one standard deviation, theirs; PPO's clip, mean over tokens.

    The paper's form without groups is `advantage.baseline = "batch"` beside it.
    """
    config.advantage.batch_std = True
    config.loss.normaliser = "token"
    config.loss.clip_high = 0.2


def cispo(config, task: Task):
    """CISPO (MiniMax-M1, arXiv 2506.13585): the ratio is a clipped, constant weight of log pi, so
    that no token loses its gradient; no lower bound, mean over tokens, GRPO's advantage.

    The paper does not give its upper bound; 5 is the one that is recommended after ScaleRL (arXiv
    2510.13786).
    """
    config.advantage.std = True
    config.loss.surrogate = "cispo"
    config.loss.normaliser = "token"
    config.loss.clip_low, config.loss.clip_high = None, 4.0


def sapo(config, task: Task):
    """SAPO (arXiv 2511.20347): a sigmoid of the ratio in place of the clip, with temperatures 1 for
    good and 1.05 for bad advantages; GRPO's advantage and its mean per row."""
    config.advantage.std = True
    config.loss.surrogate = "sapo"
    config.loss.normaliser = "sequence"
    config.loss.clip_low = config.loss.clip_high = None


def seq_tis(config, task: Task):
    """GRPO, a row weighted by pi_trainer / pi_sampler, the product over its tokens, of 2 at most
    (sequence-level truncated importance sampling, arXiv 2510.26788)."""
    grpo(config, task)
    config.loss.old_logp = "recompute"
    config.loss.tis_cap = 2.0
    config.loss.tis_level = "sequence"


def seq_mis(config, task: Task):
    """The same weight, and rows left out where it is above 2 (sequence-level masked importance
    sampling, arXiv 2510.26788)."""
    seq_tis(config, task)
    config.loss.mask_high = 2.0


def distill(config, task: Task):
    """On-policy distillation: every token that the policy wrote is told by how much likelier the
    teacher finds it, log pi_teacher - log pi, in place of a reward (GKD, arXiv 2306.13649; as an
    advantage, without clip, by Thinking Machines Lab, "On-Policy Distillation", 2025).

    Rewards are measured and not learned from; `loss.outcome_weight` above 0 adds them.
    """
    change(config, task.teacher)
    config.loss.distill_weight = 1.0
    config.loss.outcome_weight = 0.0
    config.loss.normaliser = "token"
    config.loss.clip_low = config.loss.clip_high = None


def scope_distill(config, task: Task):
    """SCOPE, and beside the reward on-policy distillation by the same teacher."""
    scope(config, task)
    config.loss.distill_weight = 0.1


def luffy(config, task: Task):
    """LUFFY (arXiv 2504.14945): one whole solution of the teacher in each group, shaped loss on it.

    As in the paper, demonstrations that the verifier refuses are left out. As in its released
    script: the demonstration counts in the group mean, no standard deviation, no clip. The script's
    entropy bonus, 0.001 times a mean over tokens, stands beside a sum over tokens that is divided
    by the longest completion; beside ours it is 0.001 x longest / tokens of a mini-batch, 2e-5 on
    the embedded tasks.
    """
    set_method(config, "luffy")
    change(config, task.teacher)
    config.demonstrations.verified = True
    config.loss.teacher_term = "shaped"
    config.loss.teacher_weight = 1.0
    config.loss.teacher_schedule = "constant"
    config.loss.normaliser = "constant"
    config.loss.clip_low = config.loss.clip_high = None
    config.loss.entropy_bonus = 2e-5


def relift(config, task: Task):
    """ReLIFT (arXiv 2506.07527): GRPO, and supervised steps on prompts whose group failed
    altogether."""
    set_method(config, "relift")
    grpo(config, task)
    change(config, task.teacher)
    config.demonstrations.verified = True


def prm_reward(config, task: Task):
    """Step scores of the PRM as dense rewards beside the outcome, the baseline that SCOPE argues
    against: normalised over the group and summed to go (arXiv 2402.03300)."""
    set_method(config, "process")
    change(config, task.prm)


def prm_min(config, task: Task):
    """PURE's min-form of PRM rewards (arXiv 2504.15275) beside the outcome."""
    set_method(config, "pure")
    change(config, task.prm)


def vppo(config, task: Task):
    """VPPO (arXiv 2601.18984): tokens before a failed row's first error get half a reward."""
    set_method(config, "vppo")
    change(config, task.prm)


def sft(config, task: Task):
    """Supervised steps on the teacher's whole solutions; no rollouts."""
    change(config, task.teacher)
    config.sft.steps = config.steps
    config.sft.prompts = 32
    config.demonstrations.verified = True


def sft_grpo(config, task: Task):
    """Supervised steps first, GRPO after."""
    grpo(config, task)
    change(config, task.teacher)
    config.sft.steps = min(10, config.steps)
    config.sft.prompts = 32
    config.demonstrations.verified = True


METHODS = {
    method.__name__: method
    for method in (
        *(policy_gradient, scope, self_correction, grpo, dr_grpo, dapo, gspo, luffy, relift),
        *(prm_reward, prm_min, vppo, sft, sft_grpo, scope_plus),
        *(rloo, reinforce_pp, cispo, sapo, seq_tis, seq_mis, distill, scope_distill),
    )
}
