"""DiffusionNFT (arXiv 2509.16117): learning on the forward process, from images and rewards alone.

No step needs noise and nothing a log-prob: any sampler may draw the images. An image is noised
again as in pretraining, and the prediction is pulled towards it or pushed away from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from aegpo.exploration import StepSelector
from aegpo.objectives.base import Experience, Objective
from aegpo.objectives.samples import LossTerms, Samples
from aegpo.policies.averaged import AveragedWeights
from aegpo.policies.base import Policy


def nft_loss(
    velocity: Tensor,
    old_velocity: Tensor,
    clean: Tensor,
    noised: Tensor,
    sigma: Tensor,
    optimality: Tensor,
    beta: float,
) -> Tensor:
    """[r l⁺ + (1 - r) l⁻] / β of the implicit policies v± = v_old ± β (v - v_old).

    l is the squared error of the clean latents that a velocity implies, x_t - σ v, divided by its
    own mean absolute error (arXiv 2509.16117, the policy objective with the adaptive weight of the
    public code). At v = v_old the gradient is (2 r - 1) times that of l.

    Args:
        velocity: Prediction v of the trained policy, with gradient, shape (n, ...).
        old_velocity: Prediction v_old of the policy that drew the images, shape (n, ...).
        clean: The images' latents x_0, shape (n, ...).
        noised: x_t = (1 - σ) x_0 + σ ε, shape (n, ...).
        sigma: σ of each row, in (0, 1], shape (n,).
        optimality: r of each row, in [0, 1]: 1 is a good image, 0 a bad one; shape (n,).
        beta: β, above 0; how far the implicit policies lie from the old one.

    Returns:
        Loss of each row, shape (n,).
    """
    sigma = sigma.view(-1, *[1] * (clean.dim() - 1))
    shift = beta * (velocity - old_velocity)

    def error(implicit: Tensor) -> Tensor:
        residual = (clean - (noised - sigma * implicit)).flatten(1)
        scale = residual.detach().abs().mean(1).clamp(min=1e-5)
        return residual.square().mean(1) / scale

    positive, negative = error(old_velocity + shift), error(old_velocity - shift)
    return (optimality * positive + (1 - optimality) * negative) / beta


class NFT(Objective):
    """DiffusionNFT: images pull or push the prediction by their advantage.

    The rollout is drawn by a behavior policy that follows the trained one after every iteration,
    theta_old <- η theta_old + (1 - η) theta with η = min(rate · max(i - start, 0), max) after i
    iterations (the public code counts optimizer steps). Its predictions in the updates count as
    `cost/rollout`. The defaults are the paper's for SD3.5 on GenEval, PickScore and HPS, except
    that it draws all noise levels but one for each image.

    Args:
        beta: β, above 0; the paper takes 1, and 0.1 for OCR and several rewards.
        advantage_clip: Advantage at which an image counts as surely good; r = A / (2 clip) + 1/2.
            The loss is multiplied by it, so that the first gradient is proportional to A.
        times_per_image: Noise levels, drawn without repetition, at which each image is trained on;
            each costs two evaluations and a backward pass.
        levels: Which noise levels these are: "random" ones of the rollout, as in the paper, or
            among those of the steps that the step selector chose ("selected"): AEGPO's local loop,
            as levels to learn at instead of steps to explore at. The rollout is then deterministic.
        kl_coeff: Weight of the mean squared difference to the reference policy's prediction; 0
            skips the reference evaluations.
        decay_rate: Growth of η per iteration.
        decay_max: Largest η, in [0, 1); 0 draws every rollout with the trained policy.
        decay_start: Iterations before η grows.

    Raises:
        ValueError: If an argument is out of range.
    """

    weight_copies = 1

    def __init__(  # noqa: PLR0913  # settings, given by name
        self,
        beta: float = 1.0,
        advantage_clip: float = 5.0,
        times_per_image: int = 4,
        levels: Literal["random", "selected"] = "random",
        kl_coeff: float = 1e-4,
        decay_rate: float = 1e-3,
        decay_max: float = 0.5,
        decay_start: int = 0,
    ) -> None:
        if beta <= 0 or advantage_clip <= 0 or times_per_image < 1:
            raise ValueError(
                f"NFT: beta={beta} and advantage_clip={advantage_clip} must be above 0 and "
                f"times_per_image={times_per_image} at least 1"
            )
        if kl_coeff < 0 or decay_rate < 0 or not 0 <= decay_max < 1 or decay_start < 0:
            raise ValueError(
                f"NFT: kl_coeff={kl_coeff}, decay_rate={decay_rate} and decay_start={decay_start} "
                f"must be at least 0, and decay_max={decay_max} at least 0 and below 1"
            )
        if levels not in ("random", "selected"):
            raise ValueError(f"NFT: levels={levels!r} is unknown; use 'random' or 'selected'")
        self.beta, self.advantage_clip = beta, advantage_clip
        self.levels = levels
        self.draws_noise = levels == "random"
        self.times_per_image, self.kl_coeff = times_per_image, kl_coeff
        self.decay_rate, self.decay_max, self.decay_start = decay_rate, decay_max, decay_start
        self.old = AveragedWeights()

    def validate(self, step_selector: StepSelector, num_steps: int) -> None:
        """Check that there are enough noise levels to draw; see `Objective.validate`."""
        if self.times_per_image > num_steps:
            raise ValueError(
                f"NFT: times_per_image={self.times_per_image} noise levels are drawn among those "
                f"of model.num_steps={num_steps} denoising steps; lower it or take more steps"
            )
        if self.levels == "selected" and not step_selector.explores:
            raise ValueError(
                f"NFT: levels='selected' takes the steps that {type(step_selector).__name__} "
                "chooses, and it chooses none; take another step_selector, or levels='random'"
            )
        if self.levels == "selected" and step_selector.branching > 1:
            raise ValueError(
                "NFT: levels='selected' draws deterministic chains, which cannot branch; set "
                "step_selector.branching to 1"
            )

    def behavior(self, policy: Policy) -> AbstractContextManager[None]:
        """The policy with theta_old; see `Objective.behavior`."""
        return self.old.active(policy)

    def samples(self, experience: Experience) -> ForwardSamples:
        """Draw the noise levels of every image; see `Objective.samples`."""
        return ForwardSamples(self, experience)

    def end_iteration(self, policy: Policy, iteration: int) -> None:
        """Let theta_old follow; see `Objective.end_iteration`."""
        done = iteration + 1
        decay = min(self.decay_rate * max(done - self.decay_start, 0), self.decay_max)
        self.old.follow(policy, decay)

    def state_dict(self) -> dict[str, Any]:
        """theta_old; see `Objective.state_dict`."""
        return {"behavior": self.old.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up theta_old; see `Objective.load_state_dict`."""
        self.old.load_state_dict(state.get("behavior", {}))


@dataclass
class ForwardSamples(Samples):
    """Every image of a rollout, at some of its noise levels.

    Args:
        objective: Whose settings hold.
        experience: The rollout of B prompts with N images.
    """

    objective: NFT
    experience: Experience

    def __post_init__(self) -> None:
        """Draw the noise levels; which ones depends on prompt and image number alone."""
        tree, noise = self.experience.tree, self.experience.noise
        rows, times = tree.row.cpu(), self.objective.times_per_image
        first = torch.searchsorted(rows, rows)  # a prompt's images are neighbors
        number = torch.arange(len(rows), device="cpu") - first
        named = torch.stack([self.experience.index.cpu()[rows], number], dim=1)
        allowed = torch.ones(
            len(self.experience.index), len(tree.sigmas) - 1, dtype=torch.bool, device="cpu"
        )
        if self.objective.levels == "selected":
            allowed = self.experience.schedule.stochastic.cpu()
        candidates = [steps.nonzero().flatten() for steps in allowed]
        levels = []
        for row, key in zip(rows.tolist(), named.tolist(), strict=True):
            order = noise.permutation("forward level", key, len(candidates[row]))
            levels.append(candidates[row][order[:times]])
        counts = torch.tensor([len(level) for level in levels], dtype=torch.int64, device="cpu")
        level = torch.cat([torch.empty(0, dtype=torch.int64, device="cpu"), *levels])
        self.keys = torch.cat([named.repeat_interleave(counts, dim=0), level[:, None]], dim=1)
        self.sigma = tree.sigmas[level.to(tree.sigmas.device)]
        self.image = (
            torch.arange(len(tree), device="cpu").repeat_interleave(counts).to(tree.row.device)
        )

    @property
    def row(self) -> Tensor:
        """Each sample's prompt, -1 where the reward failed; see `Samples.row`."""
        known = self.experience.advantages.isfinite()
        return self.experience.tree.row.where(known, -1)[self.image]

    def loss(self, which: Tensor) -> LossTerms:
        """Noise the images, predict with old, new and reference weights; see `Samples.loss`."""
        objective, experience = self.objective, self.experience
        policy, image, sigma = experience.policy, self.image[which], self.sigma[which]
        clean = policy.clean_latents(experience.tree.latents[image])
        draw = experience.noise.normal("forward", self.keys[which.cpu()], clean.shape[1:])
        noised = torch.lerp(clean, draw.to(clean.device), sigma.view(-1, *[1] * (clean.dim() - 1)))
        cond = experience.cond.select(experience.tree.row[image])
        charge = policy.evaluations.charge
        with torch.no_grad(), objective.behavior(policy), charge("rollout"):
            old_velocity = policy(noised, sigma, cond)
        with charge("update"):
            velocity = policy(noised, sigma, cond)
        clip = objective.advantage_clip
        optimality = (experience.advantages[image] / (2 * clip) + 0.5).clamp(0, 1)
        loss = clip * nft_loss(
            velocity, old_velocity, clean, noised, sigma, optimality, objective.beta
        )
        if objective.kl_coeff == 0:
            return LossTerms(loss)
        with torch.no_grad(), policy.reference(), charge("reference"):
            reference = policy(noised, sigma, cond)
        divergence = (velocity - reference).square().flatten(1).mean(1)
        return LossTerms(loss + objective.kl_coeff * divergence, kl=divergence.detach())
