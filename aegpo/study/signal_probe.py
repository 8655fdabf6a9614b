"""Measures what attention entropy is supposed to predict, on any policy and reward.

Two quantities have to go together for AEGPO's loops to mean anything: Entropy(t) with the spread
that a step's noise gives to the reward, and ΔEntropy with what there is to learn on a prompt. This
file measures both sides; `aegpo.study.signal_tables` compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from aegpo.entropy.recorder import EntropyRecorder
from aegpo.entropy.tokens import TokenSet, absent_token_sets
from aegpo.evaluations import PURPOSES
from aegpo.exploration import ExplorationSchedule, StepSelector
from aegpo.noise import KeyedNoise
from aegpo.policies.averaged import AveragedWeights
from aegpo.policies.base import Policy
from aegpo.prompts import PromptBatch
from aegpo.rewards.base import Reward
from aegpo.rollout import rollout
from aegpo.samplers import Sampler
from aegpo.sde import ODE, SDE
from aegpo.study.step_trials import draw_groups, group_spread, single_step_groups, step_agreement

ALL_LAYERS = "all"
"""Name of the layer group that averages every recorded layer, as `Recording.curve` does."""

Curves = dict[tuple[str, str], Tensor]
"""(token set, layer) → Entropy(t) of every trajectory, shape (B, trajectories, T)."""


@dataclass(frozen=True)
class Signals:
    """What was measured; B prompts, G images, M trajectories, T steps.

    Attributes:
        prompts: The prompts.
        step_spread: Reward's standard deviation inside each group when only that step draws noise,
            shape (B, T - 1); NaN where fewer than two images were scored.
        curves: Entropy under the policy.
        reference_curves: Under the reference; None for a policy that was not trained.
        before_curves: Under the earlier checkpoint; None without one.
        groups: Rewards of groups drawn as training draws them, shape (B, G).
        before_groups: The same before training: the earlier checkpoint's or the reference's.
        gains: Reward of the policy less that of before, image by image from the same starting
            noise, shape (B, G); None for a policy that was not trained.
        skipped: Token sets that this model does not have, and why.
        evaluations: Model evaluations spent, by purpose.
        agreement: Of the gradients of two halves of the prompts in the trials of each step, shape
            (T - 1,); None where it was not asked for.
    """

    prompts: PromptBatch
    step_spread: Tensor
    curves: Curves
    reference_curves: Curves | None
    before_curves: Curves | None
    groups: Tensor
    before_groups: Tensor | None
    gains: Tensor | None
    skipped: dict[str, str]
    evaluations: dict[str, int]
    agreement: Tensor | None = None


class SignalProbe:
    """Draws the trajectories and images that the tables are made of.

    All noise is fixed by prompt, so the policy, the reference and an earlier checkpoint are
    compared on the same starting noise. What is correlated over prompts shares none: single-step
    trials, groups, deterministic images and trajectories have each their own, or a prompt whose
    noise happens to be lucky in one would be so in the other. A step explores with the selector's
    own `eta`.

    Args:
        policy: The policy, with the weights that are to be looked at.
        sde: How stochastic steps are taken.
        reward: What is maximized.
        step_selector: Which steps a training rollout explores; asked without a reading.
        batch: The B prompts, three or more.
        noise: Keyed noise of the run.
        num_steps: Denoising steps T.
        images: Images in a group, G.
        trajectories: Deterministic trajectories per prompt, M; an even number, for two halves.
        rows: Query rows sampled per head, None for all.
        shared_start: Whether the images of a training rollout start from the same noise.
        split_scale: How the noise of siblings in a training rollout is correlated; None for not
            at all.
        sampler: What takes the steps without noise of all that is drawn, as in training; None for
            the Euler step.
        agreement: Whether to take the trials' gradients too, three evaluations each.
        say: Told what is measured next.

    Raises:
        ValueError: If there is too little of something to correlate.
    """

    def __init__(  # noqa: PLR0913  # all that a measurement fixes
        self,
        policy: Policy,
        sde: SDE,
        reward: Reward,
        step_selector: StepSelector,
        batch: PromptBatch,
        noise: KeyedNoise,
        num_steps: int,
        images: int = 8,
        trajectories: int = 8,
        rows: int | None = 64,
        shared_start: bool = False,
        split_scale: float | None = None,
        sampler: Sampler | None = None,
        agreement: bool = False,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        if len(batch) < 3 or images < 2 or trajectories < 2 or trajectories % 2:
            raise ValueError(
                f"{len(batch)} prompts, images={images} and trajectories={trajectories}: use at "
                "least 3 prompts, 2 images and an even number of trajectories"
            )
        if num_steps < 3:
            raise ValueError(f"num_steps={num_steps} offers fewer than two steps to compare")
        self.policy, self.sde, self.reward = policy, sde, reward
        self.step_selector, self.batch = step_selector, batch
        self.noise, self.num_steps = noise.fixed(), num_steps
        self.images, self.trajectories, self.rows = images, trajectories, rows
        self.shared_start, self.split_scale, self.say = shared_start, split_scale, say
        self.sampler, self.takes_gradients = sampler, agreement
        self.cond = policy.encode(batch.prompts)

    def measure(self, trained: bool, before: Mapping[str, Tensor] | None = None) -> Signals:
        """Measure everything; the policy is left as it was found.

        Args:
            trained: Whether the policy differs from the reference. If not, ΔEntropy and gains are
                zero by definition and are not measured.
            before: Trainable tensors of an earlier checkpoint; None takes the reference for it.

        Returns:
            The measurements.
        """
        counts = dict(self.policy.evaluations.counts)
        skipped = absent_token_sets(self.policy.token_layout(self.cond))
        spread, agreement = self.step_trials()
        curves = self.curves("the policy", "probe", skipped)
        groups = self.groups("the policy")
        reference_curves = before_curves = before_groups = gains = None
        if trained:
            with self.policy.reference():
                reference_curves = self.curves("the reference", "reference", skipped)
            after = self.final_rewards("the policy")
            name, earlier = "the reference", self.policy.reference()
            if before is not None:
                weights = AveragedWeights()
                weights.load_state_dict(before)
                name, earlier = "the earlier checkpoint", weights.active(self.policy)
            with earlier:
                if before is not None:
                    before_curves = self.curves(name, "probe", skipped)
                before_groups = self.groups(name)
                gains = after - self.final_rewards(name)
        spent = {name: self.policy.evaluations.counts[name] - counts[name] for name in PURPOSES}
        return Signals(
            self.batch,
            spread,
            curves,
            reference_curves,
            before_curves,
            groups,
            before_groups,
            gains,
            skipped,
            spent,
            agreement,
        )

    def step_trials(self) -> tuple[Tensor, Tensor | None]:
        """Reward spread inside a group when only one step draws noise, and its gradients.

        The images of a group share their starting noise, so the step is the only difference
        between them. The last step never explores.

        Returns:
            The spread, shape (B, T - 1), and how far the halves' gradients agree, shape (T - 1,);
            None if it was not asked for.
        """
        columns, agreement = [], []
        for step in range(self.num_steps - 1):
            self.say(f"reward spread of step {step}")
            groups = single_step_groups(
                self.policy,
                self.sde,
                self.reward,
                self.batch,
                self.noise.apart("steps"),
                step=step,
                num_steps=self.num_steps,
                images=self.images,
                eta=self.step_selector.eta,
                sampler=self.sampler,
                purpose="rollout",
            )
            columns.append(group_spread(groups.rewards))
            if self.takes_gradients:
                self.say(f"gradients of step {step}")
                agreement.append(step_agreement(self.policy, self.sde, groups))
        found = torch.tensor(agreement, dtype=torch.float64, device="cpu") if agreement else None
        return torch.stack(columns, dim=1), found

    def groups(self, whose: str) -> Tensor:
        """Rewards of groups as training draws them before any reading, shape (B, G)."""
        self.say(f"groups of {whose}")
        noise, index = self.noise.apart("groups"), self.batch.index
        schedule = self.step_selector(None, noise, index, self.num_steps)
        return draw_groups(
            self.policy,
            self.sde,
            self.reward,
            self.batch,
            noise,
            schedule,
            images=self.images,
            shared_start=self.shared_start,
            split_scale=self.split_scale,
            sampler=self.sampler,
            purpose="rollout",
        ).rewards

    def final_rewards(self, whose: str) -> Tensor:
        """Rewards of deterministic images from G starting noises, shape (B, G)."""
        self.say(f"deterministic images of {whose}")
        schedule = ExplorationSchedule.deterministic(len(self.batch), self.num_steps)
        return draw_groups(
            self.policy,
            ODE(),
            self.reward,
            self.batch,
            self.noise.apart("images"),
            schedule,
            images=self.images,
            shared_start=False,
            sampler=self.sampler,
            purpose="validation",
        ).rewards

    def curves(self, whose: str, purpose: str, skipped: Mapping[str, str]) -> Curves:
        """Record every token set once, giving all layers.

        Each trajectory is a row of its own, so that trajectories can be compared with each other.

        Args:
            whose: Name of what predicts at present.
            purpose: What the evaluations are charged to.
            skipped: Token sets to leave out.

        Returns:
            Entropy of each (token set, layer), "all" layers first.
        """
        num_prompts, repeats = len(self.batch), self.trajectories
        row = torch.arange(num_prompts, device="cpu").repeat_interleave(repeats)
        cond = self.cond.select(row.to(self.cond.embeds.device))
        number = torch.arange(repeats, device="cpu").repeat(num_prompts)
        index = self.batch.index.cpu()[row] * repeats + number
        ones = torch.ones_like(row)
        schedule = ExplorationSchedule.deterministic(len(row), self.num_steps)
        curves: Curves = {}
        for tokens in get_args(TokenSet):
            if tokens in skipped:
                continue
            self.say(f"entropy of {whose}, {tokens}")
            recorder = EntropyRecorder(tokens=tokens, rows=self.rows)
            charge = self.policy.evaluations.charge(purpose)
            with charge, recorder.record(self.policy) as recording:
                rollout(
                    self.policy,
                    ODE(),
                    cond,
                    schedule,
                    ones,
                    self.noise.apart("entropy"),
                    index,
                    sampler=self.sampler,
                    decode=False,
                    observer=recording,
                )
            entropy = recording.per_prompt_layer().double()  # (B M, L, T)
            entropy = entropy.view(num_prompts, repeats, -1, self.num_steps)
            curves[tokens, ALL_LAYERS] = entropy.mean(dim=2)
            for layer, name in enumerate(recording.layer_names):
                curves[tokens, name] = entropy[:, :, layer]
        return curves
