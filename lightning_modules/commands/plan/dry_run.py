"""Iterations without a model: the module's own parts, on a stand-in that only counts."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from aegpo.allocation.sharding import shard_loads
from aegpo.entropy.reading import EntropyReading
from aegpo.evaluations import TRAINING
from aegpo.noise import KeyedNoise
from aegpo.objectives import Experience
from aegpo.planning.counts import Range
from aegpo.planning.stand_in import StandInPolicy
from aegpo.prompts import PromptBatch
from lightning_modules.aegpo_module import AEGPOModule
from lightning_modules.training.decision import Decision


@dataclass(frozen=True)
class PlannedIteration:
    """What iterations do and spend, over all ranks; ranges go over the dry runs.

    Args:
        images: Images drawn.
        trained: Those of them that are trained on.
        group: Images of one prompt.
        stochastic_steps: Steps K at which one prompt's rollouts explore.
        transitions: Transitions that the rollout stores.
        samples: Samples that the updates of one inner epoch score.
        evaluations: Model evaluations by purpose, those of callbacks not among them.
        busiest_share: Largest share of the images that falls to one rank.
        dry_runs: Iterations that were tried.
    """

    images: Range
    trained: Range
    group: Range
    stochastic_steps: Range
    transitions: Range
    samples: Range
    evaluations: dict[str, Range]
    busiest_share: float
    dry_runs: int


def dry_run(
    module: AEGPOModule,
    batch_size: int,
    iterations: Sequence[int],
    publishes: set[str],
    *,
    policy: StandInPolicy | None = None,
    rescores: bool = False,
    world_size: int = 1,
) -> PlannedIteration:
    """Let a module draw and learn from images of one number, and count what that takes.

    Allocator, selectors, rollout, credit, pruning and objective are the module's own. Rewards are
    random, so no group is silent; entropy, if a callback publishes it, is tried rising, falling
    and random, with and without a ΔEntropy that tells the prompts apart. Nothing is drawn from
    torch's global random state, and the module is left as it was found.

    Args:
        module: The module.
        batch_size: Prompts of an iteration, over all ranks.
        iterations: Which iterations of the run to try.
        publishes: What callbacks will put into `module.entropy`: "curve" and "delta".
        policy: Guided as the one to be trained; None for one without guidance.
        rescores: Whether the run computes below fp32, where old log-probs are computed again.
        world_size: Ranks that share the prompts.

    Returns:
        Counts of an iteration.

    Raises:
        ValueError: If the settings contradict each other or the prompts.
    """
    module.allocator.validate(batch_size)
    tried: list[dict[str, float]] = []
    groups: list[float] = []
    steps: list[float] = []
    share = 0.0
    batch = PromptBatch.collate(
        [{"prompt": str(row), "index": row, "metadata": {}} for row in range(batch_size)]
    )
    with _stand_in(module, policy or StandInPolicy()):
        for iteration in iterations:
            module.iteration = iteration
            noise = module.noise.at(iteration)
            for reading in _readings(publishes, batch_size, module.num_steps, noise):
                module.entropy = reading
                decision = _decide(module, batch)
                sizes = decision.group_sizes
                groups += sizes.tolist()
                steps += decision.schedule.stochastic.sum(1).tolist()
                share = max(share, float(shard_loads(sizes, world_size).max() / sizes.sum()))
                module.policy.evaluations.counts.update(dict.fromkeys(TRAINING, 0))
                cond = module.encode(batch)
                tree = module.explore(batch, cond, decision.own()).tree
                rewards = noise.normal(
                    "dry run", torch.arange(len(tree), device="cpu")[:, None], (1,)
                )[:, 0]
                advantages = module.advantage(rewards, tree.row).values
                weights = module.selection(advantages, tree.row, batch.index, noise)
                experience = Experience(
                    policy=module.policy,
                    sde=module.sde,
                    cond=cond,
                    tree=tree,
                    schedule=decision.schedule,
                    rewards=rewards,
                    advantages=module.selection.trained_on(advantages, weights, tree.row),
                    index=batch.index,
                    noise=noise,
                    weights=weights,
                )
                samples = _update(module, experience, rescores)
                counts = module.policy.evaluations.counts
                tried.append(
                    {purpose: float(counts[purpose]) for purpose in TRAINING}
                    | {"images": len(tree), "samples": samples}
                    | {"trained": len(tree) if weights is None else int((weights > 0).sum())}
                    | {"transitions": len(tree.transitions)}
                )
    ranges = {name: Range.over(one[name] for one in tried) for name in tried[0]}
    return PlannedIteration(
        images=ranges["images"],
        trained=ranges["trained"],
        group=Range.over(groups),
        stochastic_steps=Range.over(steps),
        transitions=ranges["transitions"],
        samples=ranges["samples"],
        evaluations={purpose: ranges[purpose] for purpose in TRAINING},
        busiest_share=share,
        dry_runs=len(tried),
    )


def _decide(module: AEGPOModule, batch: PromptBatch) -> Decision:
    """Let the module decide; what a selector or an allocator raises there becomes one line."""
    try:
        return module.decide(batch)
    except ValueError:
        raise  # says what is wrong by itself
    except Exception as error:
        parts = (module.step_selector, module.allocator)
        frames = list(traceback.walk_tb(error.__traceback__))
        owners = [frame.f_locals.get("self") for frame, _ in frames]
        named = [type(one).__name__ for one in owners if any(one is part for part in parts)]
        if not named:
            raise
        frame, line = frames[-1]
        given = "no reading" if module.entropy is None else "a reading"
        raise ValueError(
            f"{named[-1]} raised {type(error).__name__}: {error} "
            f"({frame.f_code.co_filename}:{line}) when it was asked with {given} (entropy is "
            f"{'None' if module.entropy is None else 'an EntropyReading'}), as a run does"
            + (" until a callback has published one" if module.entropy is None else "")
        ) from error


@torch.no_grad()
def _update(module: AEGPOModule, experience: Experience, rescores: bool) -> int:
    """Score what `AEGPOModule.update` would score; the samples of one inner epoch."""
    samples = module.objective.samples(experience)
    updates = samples.split(experience.index, module.updates_per_epoch, experience.noise)
    updates = [active for rows in updates if len(active := samples.active(rows)) > 0]
    own = rescores or samples.first_is_old
    if own:  # all but the first, whose old predictions are its own
        samples.rescore(updates[1:])
    for epoch in range(module.inner_epochs):
        for number, rows in enumerate(updates):
            score = samples.first_loss if own and epoch == number == 0 else samples.loss
            score(rows)
    return sum(map(len, updates))


@contextmanager
def _stand_in(module: AEGPOModule, policy: StandInPolicy) -> Iterator[None]:
    """Give the module a policy to count with, and take back what it and the objective kept."""
    remembered, reached = module.objective.state_dict(), (module.iteration, module.entropy)
    measured, previews = module.step_selector.state_dict(), module.previews
    module.policy, module.previews = policy, None  # all images are finished: the most it takes
    try:
        yield
    finally:
        del module.policy
        module.iteration, module.entropy = reached
        module.objective.load_state_dict(remembered)
        module.step_selector.load_state_dict(measured)
        module.previews = previews
        module.timer.reset()


def _readings(
    publishes: set[str], batch_size: int, num_steps: int, noise: KeyedNoise
) -> list[EntropyReading | None]:
    """Readings between which those of a run lie, as far as the number of evaluations goes."""
    readings: list[EntropyReading | None] = [None]
    if not publishes:
        return readings
    rows = torch.arange(batch_size, device="cpu")[:, None]
    rising = torch.linspace(0, 1, num_steps, device="cpu").expand(batch_size, -1)
    curves = [torch.zeros(batch_size, num_steps, device="cpu")]
    if "curve" in publishes:
        curves = [rising, rising.flip(1), noise.uniform("dry curve", rows, (num_steps,))]
    deltas: list[Tensor | None] = [None]
    if "delta" in publishes:
        deltas += [noise.uniform("dry delta", rows, (1,))[:, 0]]
    return readings + [EntropyReading(curve, delta) for curve in curves for delta in deltas]
