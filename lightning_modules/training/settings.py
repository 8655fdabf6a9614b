"""Which arguments of `AEGPOModule` contradict each other, found before any model is loaded."""

from __future__ import annotations

from typing import Any

from aegpo.advantages import GroupRelative
from aegpo.exploration import AllSteps, StepSelector
from aegpo.objectives import Credit, Objective, PolicyGradient
from aegpo.rewards.base import Reward
from aegpo.rollout import RolloutWarmup
from aegpo.rollout.split_noise import check_split_scale
from aegpo.samplers import Sampler
from aegpo.selection import Extremes, Previews, Selection
from aegpo.utilities.checks import require_positive


def choose_objective(objective: Objective | None, **policy_gradient: Any) -> Objective:
    """Take the given objective, or the policy gradient with the module's own arguments.

    Args:
        objective: What is minimized instead of the policy gradient; None for it.
        **policy_gradient: Arguments of `PolicyGradient`.

    Returns:
        The objective.

    Raises:
        ValueError: If an argument of the policy gradient is given beside another objective.
    """
    gradient = PolicyGradient(**policy_gradient)
    if objective is None:
        return gradient
    for name in ("credit", "pruning", "transition_weight", "divergence_bound", "kl_coeff"):
        if policy_gradient[name] not in (None, 0):
            raise ValueError(
                f"model.{name} belongs to the policy gradient, in whose place stands "
                f"model.objective={type(objective).__name__}; set it to null (kl_coeff to 0), or "
                "lay the policy gradient under it (on Shapes configs/overlays/aegpo.yaml)"
            )
    if policy_gradient["kl_normalization"] != "variance":
        raise ValueError(
            "model.kl_normalization belongs to the policy gradient, in whose place stands "
            f"model.objective={type(objective).__name__}; leave it at variance"
        )
    return objective


def check_update(max_grad_norm: float, **counts: int) -> None:
    """Check the numbers of the update.

    Args:
        max_grad_norm: Norm that gradients are scaled down to.
        **counts: Numbers that must be at least 1, by name.

    Raises:
        ValueError: If a number is out of range.
    """
    for name, value in counts.items():
        require_positive(f"model.{name}", value)
    if max_grad_norm <= 0:
        raise ValueError(f"model.max_grad_norm={max_grad_norm} must be above 0")


def check_parts(advantage: GroupRelative, reward: Reward, credit: Credit | None = None) -> None:
    """Check that an advantage that looks at a reward's parts finds some, and that it is used.

    Args:
        advantage: How rewards become advantages.
        reward: What is maximized.
        credit: How a tree hands them down; None for the mean of the images below.

    Raises:
        ValueError: If it is no composite, or the credit compares the rewards anew by their sum.
    """
    if advantage.uses_parts and credit is not None and credit.compares_rewards:
        raise ValueError(
            f"model.advantage={type(advantage).__name__} compares the parts of a reward one by one,"
            f" but model.credit={type(credit).__name__} compares their sum anew at every step, "
            "without the parts and their weights; use aegpo.objectives.LeafCredit, or "
            "aegpo.advantages.GroupRelative"
        )
    if advantage.uses_parts and not reward.part_weights:
        raise ValueError(
            f"model.advantage={type(advantage).__name__} compares the parts of a reward one by one,"
            f" but {type(reward).__name__} has none; train on an aegpo.rewards.WeightedSum"
        )


def check_rollout(
    step_selector: StepSelector,
    objective: Objective,
    num_steps: int,
    shared_start: bool,
    split_scale: float | None,
) -> None:
    """Check that the rollout gives the objective something to learn from.

    Args:
        step_selector: Which steps explore.
        objective: What learns from it.
        num_steps: T, the number of denoising steps.
        shared_start: Whether a prompt's images start at one noise.
        split_scale: s of correlated split noise, None for independent noise.

    Raises:
        ValueError: If a setting is out of range or cannot go with another.
    """
    check_split_scale(split_scale)
    if split_scale is not None and step_selector.branching == 1 and not shared_start:
        raise ValueError(
            f"model.split_scale={split_scale} correlates the noise of siblings, but "
            f"{type(step_selector).__name__} grows chains without any; give it branching: 2 or "
            "more, or leave split_scale out"
        )
    step_selector.validate(num_steps)
    objective.validate(step_selector, num_steps)
    if step_selector.gradient_copies and not objective.learns_from_steps:
        raise ValueError(
            f"model.step_selector={type(step_selector).__name__} measures the gradients of the "
            f"policy gradient's steps, and model.objective={type(objective).__name__} has none; "
            "use levels: aegpo.objectives.LevelAgreement, with NoSteps or entropy as its prior"
        )
    if shared_start and not (step_selector.explores and objective.draws_noise):
        raise ValueError(
            "model.shared_start=true gives a prompt's images one starting noise, and without a "
            "stochastic step they would all be equal; set it to false"
        )


def check_selection(
    selection: Selection, step_selector: StepSelector, objective: Objective
) -> None:
    """Check that a selection of images acts on what is trained, and as it promises.

    Args:
        selection: Which images are trained on.
        step_selector: Which steps draw noise.
        objective: What learns from them.

    Raises:
        ValueError: If the credit looks at rewards instead of the chosen images' advantages, or
            weights that leave no bias meet a tree, whose images share transitions.
    """
    name = type(selection).__name__
    credit = objective.credit if isinstance(objective, PolicyGradient) else None
    if selection.selects and credit is not None and credit.compares_rewards:
        raise ValueError(
            f"model.selection={name} chooses among the images' advantages, but model.credit="
            f"{type(credit).__name__} compares the rewards anew at every step; use "
            "aegpo.objectives.LeafCredit, or leave selection out"
        )
    if selection.unbiased and step_selector.branching > 1:
        raise ValueError(
            f"model.selection={name} weighs images by 1 / p, and the transitions of a tree belong "
            "to several images; set step_selector.branching to 1, or use "
            "aegpo.selection.Extremes"
        )


def check_previews(
    previews: Previews | None,
    selection: Selection,
    step_selector: StepSelector,
    objective: Objective,
    overlap_chunks: int,
) -> None:
    """Check that rollouts may be stopped by their previews.

    Args:
        previews: What stops them; None for nothing.
        selection: Which images are trained on, and so go on.
        step_selector: Which steps draw noise.
        objective: What learns from the images.
        overlap_chunks: Into how many chunks a rollout is divided.

    Raises:
        ValueError: If a step draws noise after which a preview means another image, nothing says
            which images go on, or the rollout is drawn in parts.
    """
    if previews is None:
        return
    if step_selector.explores and objective.draws_noise:
        raise ValueError(
            f"model.previews foretell images that are drawn without noise, and "
            f"{type(step_selector).__name__} makes steps stochastic; use a model.objective that "
            "learns from images, such as aegpo.objectives.NFT, and leave model.previews out else"
        )
    if not isinstance(selection, Extremes):
        raise ValueError(
            f"model.previews finish the images that model.selection chooses by them, and "
            f"{type(selection).__name__} is not aegpo.selection.Extremes; set that"
        )
    if overlap_chunks > 1:
        raise ValueError(
            f"model.previews compare the images of a rollout that is drawn as one, and "
            f"model.overlap_chunks={overlap_chunks} draws it in parts; set it to 1"
        )


def check_warmup(
    warmup: RolloutWarmup | None,
    step_selector: StepSelector,
    objective: Objective,
    previews: Previews | None,
) -> None:
    """Check that the first iterations may be drawn otherwise.

    Args:
        warmup: How they are drawn; None for like all others.
        step_selector: Which steps draw noise.
        objective: What learns from them.
        previews: What stops rollouts early; None for nothing.

    Raises:
        ValueError: If steps are chosen or remembered by their number, which would then change.
    """
    if warmup is None:
        return
    if step_selector.explores and objective.draws_noise:
        raise ValueError(
            f"model.warmup draws in {warmup.num_steps} steps at first, and what steps teach is "
            "known by their number; use a model.objective that learns from images, such as "
            "aegpo.objectives.NFT, or leave warmup out"
        )
    if previews is not None:
        raise ValueError(
            "model.previews learns at which step it can tell images apart, and model.warmup "
            "changes their number; leave one of them out"
        )
    step_selector.validate(warmup.num_steps)
    objective.validate(step_selector, warmup.num_steps)
    if warmup.selection is not None:
        check_selection(warmup.selection, step_selector, objective)


def check_sampler(
    sampler: Sampler | None, step_selector: StepSelector, objective: Objective
) -> None:
    """Check that a sampler has steps to take: two without noise, one after the other.

    Args:
        sampler: What takes the steps without noise; None for the Euler step.
        step_selector: Which steps draw noise.
        objective: What may do without it.

    Raises:
        ValueError: If every step but the last one draws noise.
    """
    if sampler is not None and isinstance(step_selector, AllSteps) and objective.draws_noise:
        raise ValueError(
            f"model.sampler={sampler} has no effect: AllSteps draws noise at every step but the "
            "last, and the sampler starts anew after each; leave it out, or let fewer steps explore"
        )
