"""DiffusionNFT (arXiv 2509.16117): learning on the forward process, from images and rewards alone.

No step needs noise and nothing a log-prob: any sampler may draw the images. An image is noised
again as in pretraining, and the prediction is pulled towards it or pushed away from it.
"""

from __future__ import annotations

from torch import Tensor

from aegpo.objectives.base import Experience
from aegpo.objectives.forward.agreement import LevelAgreement
from aegpo.objectives.forward.levels import LevelRule, NoiseLevels
from aegpo.objectives.forward.objective import ForwardObjective, Penalties, Ramp
from aegpo.objectives.forward.samples import ForwardSamples, Noised
from aegpo.objectives.samples import LossTerms


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


class NFT(ForwardObjective):
    """DiffusionNFT: images pull or push the prediction by their advantage.

    The rollout is drawn by a behavior policy that follows the trained one after every iteration,
    theta_old <- η theta_old + (1 - η) theta with η = min(rate · max(i - start, 0), max) after i
    iterations (the public code counts optimizer steps). Its predictions in the updates count as
    `cost/rollout`; while η is 0 those of an iteration's first update are the trained policy's own,
    and cost nothing. The defaults are the paper's for SD3.5 on GenEval, PickScore and HPS, except
    that it draws all noise levels but one for each image.

    Args:
        beta: β, above 0; the paper takes 1, and 0.1 for OCR and several rewards.
        advantage_clip: Advantage at which an image counts as surely good; r = A / (2 clip) + 1/2.
            The loss is multiplied by it, so that the first gradient is proportional to A.
        times_per_image: Noise levels at which each image is trained on; each costs two evaluations
            and a backward pass.
        levels: Which noise levels these are: "random" ones of the rollout, none twice, as in the
            paper; one from each of so many equal parts of the schedule ("stratified"), between the
            rollout's steps too; or among those of the steps that the step selector chose
            ("selected"): AEGPO's local loop, as levels to learn at instead of steps to explore at.
            The rollout is then deterministic. Or a `LevelAgreement`, which learns where to draw.
        level_range: Part of the schedule that they come from, as shares of its steps: [0, 0.5] is
            its noisier half.
        kl_coeff: Weight of the mean squared difference to the reference policy's prediction; 0
            skips the reference evaluations.
        anchor_coeff: Weight of the same at one more level of each image, from the part of the
            schedule outside `level_range`, where nothing else holds the prediction in place while
            the weights move; it costs an evaluation and a backward pass. 0 for none.
        ema_kl_coeff: Weight of the difference to an average of the policy; 0 skips its evaluations.
        ema_decay_rate: Growth of that average's decay per iteration.
        ema_decay_max: Its largest decay, in [0, 1).
        decay_rate: Growth of η per iteration. The paper's 1e-3 is for thousands of iterations; in
            runs of a hundred 0.1 makes the behavior policy a trust region.
        decay_max: Largest η, in [0, 1); 0 draws every rollout with the trained policy.
        decay_start: Iterations before η grows.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(  # noqa: PLR0913  # settings, given by name
        self,
        beta: float = 1.0,
        advantage_clip: float = 5.0,
        times_per_image: int = 4,
        levels: LevelRule | LevelAgreement = "random",
        level_range: tuple[float, float] = (0.0, 1.0),
        kl_coeff: float = 1e-4,
        anchor_coeff: float = 0.0,
        ema_kl_coeff: float = 0.0,
        ema_decay_rate: float = 1e-3,
        ema_decay_max: float = 0.3,
        decay_rate: float = 1e-3,
        decay_max: float = 0.5,
        decay_start: int = 0,
    ) -> None:
        if beta <= 0 or advantage_clip <= 0:
            raise ValueError(
                f"NFT: beta={beta} and advantage_clip={advantage_clip} must be above 0"
            )
        ema = Ramp("ema_decay", ema_decay_rate, ema_decay_max)
        super().__init__(
            NoiseLevels(levels, times_per_image, level_range, anchored=anchor_coeff > 0),
            Ramp("decay", decay_rate, decay_max, decay_start),
            Penalties(kl_coeff, ema_kl_coeff, ema, anchor_coeff),
            keeps_old=True,
        )
        self.beta, self.advantage_clip = beta, advantage_clip

    def samples(self, experience: Experience) -> NFTSamples:
        """Draw the noise levels of every image; see `Objective.samples`."""
        return NFTSamples(self, experience)


class NFTSamples(ForwardSamples[NFT]):
    """Every image of a rollout at some noise levels, with the loss of `NFT`.

    Args:
        objective: Whose settings hold.
        experience: The rollout of B prompts with N images.
    """

    def compare(self, which: Tensor, at: Noised, first: bool) -> tuple[Tensor, LossTerms]:
        """Predict with old and new weights, which may be the same; see `ForwardSamples`."""
        del which
        same = first and self.on_policy
        old_velocity = None if same else self.predict_old(at)
        velocity = self.predict(at)
        if old_velocity is None:
            old_velocity = velocity.detach()
        clip, beta = self.objective.advantage_clip, self.objective.beta
        optimality = (at.advantages / (2 * clip) + 0.5).clamp(0, 1)
        loss = nft_loss(velocity, old_velocity, at.clean, at.latents, at.sigma, optimality, beta)
        return velocity, LossTerms(clip * loss)
