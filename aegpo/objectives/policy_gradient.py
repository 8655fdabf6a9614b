"""The policy gradient over stored transitions: GRPO on rollout trees."""

from __future__ import annotations

from aegpo.advantages import GroupRelative
from aegpo.exploration import StepSelector
from aegpo.objectives.base import Experience, Objective
from aegpo.objectives.credit import Credit, LeafCredit
from aegpo.objectives.half_gradients import HalfGradients
from aegpo.objectives.pruning import Pruning
from aegpo.objectives.transition_samples import KL_NORMALIZATIONS, KLNormalization, Replay
from aegpo.objectives.transition_weights import EqualWeight, TransitionWeight


class PolicyGradient(Objective):
    """The clipped policy gradient of every stochastic transition (arXiv 1707.06347, 2402.03300).

    Args:
        clip_range: Half width of the clip on the ratio of per-dimension mean log-probs, above 0.
        divergence_bound: KL to the behavior policy, per dimension, from which on a transition is
            dropped whose gradient would raise it, in place of the clip (Flow-DPPO); None for it.
        kl_coeff: Weight of the KL to the reference policy; 0 skips the reference evaluations.
        kl_normalization: What that KL is divided by, see `Replay`: "variance" for the KL itself,
            "diffusion" for Flow-GRPO's.
        transition_weight: Weight of a transition by its step; None for equal weights.
        credit: How a tree hands the images' advantages down to its transitions; None for the mean
            of the images below.
        pruning: Which transitions are left out; None for none.
        advantage: What compared the images with their group, for a credit that compares again;
            None for the group-relative one.

    Raises:
        ValueError: If `clip_range` or `divergence_bound` is not above 0, `kl_coeff` is negative or
            `kl_normalization` is unknown.
    """

    learns_from_steps = True

    def __init__(  # noqa: PLR0913  # settings, given by name
        self,
        clip_range: float = 1e-3,
        divergence_bound: float | None = None,
        kl_coeff: float = 0.0,
        kl_normalization: KLNormalization = "variance",
        transition_weight: TransitionWeight | None = None,
        credit: Credit | None = None,
        pruning: Pruning | None = None,
        advantage: GroupRelative | None = None,
    ) -> None:
        if clip_range <= 0 or kl_coeff < 0:
            raise ValueError(
                f"model.clip_range={clip_range} must be above 0 and model.kl_coeff={kl_coeff} at "
                "least 0"
            )
        if divergence_bound is not None and divergence_bound <= 0:
            raise ValueError(
                f"model.divergence_bound={divergence_bound} must be above 0, or null for the clip"
            )
        if kl_normalization not in KL_NORMALIZATIONS:
            raise ValueError(
                f"model.kl_normalization={kl_normalization!r} is unknown; use 'variance' for the "
                "KL itself, or 'diffusion' for Flow-GRPO's, which leaves the step's length out"
            )
        self.kl_normalization: KLNormalization = kl_normalization
        self.clip_range, self.kl_coeff = clip_range, kl_coeff
        self.divergence_bound = divergence_bound
        self.transition_weight = transition_weight or EqualWeight()
        self.credit, self.pruning = credit or LeafCredit(), pruning
        self.advantage = advantage or GroupRelative()

    def validate(self, step_selector: StepSelector, num_steps: int) -> None:
        """Refuse a rollout without log-probs, and pruning of absent steps; see `Objective`."""
        if not step_selector.explores:
            raise ValueError(
                f"model.step_selector={type(step_selector).__name__} makes no step stochastic, and "
                "the policy gradient learns from stochastic steps only; choose another selector, "
                "or a model.objective that learns from images, such as aegpo.objectives.NFT"
            )
        if self.pruning is not None:
            self.pruning.validate(num_steps)

    def samples(self, experience: Experience) -> Replay:
        """Give every transition its advantage; see `Objective.samples`."""
        tree, schedule = experience.tree, experience.schedule
        edges = self.credit(tree, experience.rewards, experience.advantages, self.advantage)
        edges = edges.nan_to_num(0.0)  # a failed reward counts for no branch
        kept = None
        if self.pruning is not None:
            kept = self.pruning(tree, schedule, edges, experience.noise, experience.index)
        if experience.weights is not None:  # what leads to no image that is trained on
            leads = tree.backup((experience.weights > 0).float()) > 0
            kept = leads if kept is None else kept & leads
        return Replay(
            experience.policy,
            experience.sde,
            experience.cond,
            tree,
            schedule,
            edges,
            kept,
            clip_range=self.clip_range,
            weight=self.transition_weight,
            kl_coeff=self.kl_coeff,
            kl_normalization=self.kl_normalization,
            divergence_bound=self.divergence_bound,
            halves=_half_gradients(experience),
        )


def _half_gradients(experience: Experience) -> HalfGradients | None:
    """What measures the agreement by step in this iteration, if anything does."""
    agreement = experience.agreement
    if agreement is None or not agreement.due(experience.noise.iteration):
        return None
    return HalfGradients(
        agreement.learn_watched,
        len(agreement.watched),
        experience.policy,
        experience.noise,
        experience.index,
        ("steps by AgreementSteps", "another step_selector"),
    )
