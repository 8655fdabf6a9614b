"""The one denoising loop: prompts in, a tree of images out.

The loop goes level by level. All nodes of a level, of all prompts and all groups, are one call of
the policy; a node that parts into several children is evaluated once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from aegpo.entropy import TokenLayout
from aegpo.exploration import ExplorationSchedule
from aegpo.noise import KeyedNoise
from aegpo.policies.base import Policy
from aegpo.policies.conditioning import Conditioning
from aegpo.rollout.finite import require_finite
from aegpo.rollout.path import Paths
from aegpo.rollout.split_noise import check_split_scale, sibling_noise
from aegpo.rollout.stopping import Stopper, paths_that_go_on
from aegpo.rollout.tree import RolloutTree, Transitions
from aegpo.samplers import Sampler
from aegpo.sde import SDE
from aegpo.sde.base import check_falling
from aegpo.transfer import without_waiting


class LevelObserver(Protocol):
    """Is told what the policy is about to be run on; an entropy recorder, for instance."""

    def begin(self, step: int, row: Tensor, layout: TokenLayout) -> None:
        """Called before the policy predicts one level of the tree.

        Args:
            step: The denoising step, from 0.
            row: (n,) int64 on the CPU, the row of each node's prompt in the batch.
            layout: Where image and text tokens lie, for these n rows.
        """


@dataclass
class _Nodes:
    """The nodes of the level that the loop has reached, those of one prompt side by side."""

    latents: Tensor  # (n, C, H, W) fp32
    row: Tensor  # (n,) of the prompt, in the batch
    number: Tensor  # (n,) unique within its prompt and level, and a function of that prompt alone
    edge: Tensor  # (n,) last stochastic edge on the way here, -1 for none

    def select(self, which: Tensor) -> _Nodes:
        latents = self.latents[without_waiting(which, self.latents.device)]
        return _Nodes(latents, self.row[which], self.number[which], self.edge[which])


@torch.no_grad()
def rollout(  # noqa: PLR0913  # all that decides an image
    policy: Policy,
    sde: SDE,
    cond: Conditioning,
    schedule: ExplorationSchedule,
    group_sizes: Tensor,
    noise: KeyedNoise,
    index: Tensor,
    *,
    shared_start: bool = False,
    split_scale: float | None = None,
    sampler: Sampler | None = None,
    decode: bool = True,
    observer: LevelObserver | None = None,
    stopper: Stopper | None = None,
) -> RolloutTree:
    """Draws a group of images for every prompt and remembers the stochastic steps.

    Each prompt has one or more roots, ``group_size / prod(branching)`` of them, and every root
    grows into ``prod(branching)`` leaves. What a prompt gets depends on its dataset index, its row
    of the schedule and its group size only, not on the prompts beside it: start noise is keyed by
    (index, root), the noise of a step by (index, child, step).

    Nothing is charged to a purpose here: wrap the call in ``policy.evaluations.charge(...)``.

    Args:
        policy: The model.
        sde: How stochastic steps are taken.
        cond: Conditioning of the B prompts.
        schedule: Noise level and branching of every prompt and step; its T is the number of steps.
        group_sizes: (B,) images per prompt, 1 or more.
        noise: The noise of this iteration.
        index: (B,) dataset rows of the prompts, no row twice.
        shared_start: If true, all images of a prompt start from the same noise and are one node
            until the prompt's first stochastic step, where it parts into all roots at once (times
            that step's branching). Without a stochastic step the group's images are all equal.
        split_scale: BranchGRPO's s: where a node parts into several children they share a part of
            their noise, so that any two are correlated by 1 / (1 + s²) and each is still standard
            normal; above 0. None draws them independently.
        sampler: Takes the steps without noise; None for Euler's.
        decode: If false, latents stay undecoded and `RolloutTree.images` is None.
        observer: Told about each level before the policy runs on it.
        stopper: Ends some paths without noise before their last step: a group then has fewer
            images than its size.

    Returns:
        The tree, on the device of the conditioning; images in the order of the prompts.

    Raises:
        ValueError: If the arguments do not fit together, the SDE does not accept a noise level, a
            group size is not a multiple of its prompt's leaves per root, or `split_scale` is not
            above 0.
        RuntimeError: If the policy's predictions are not finite; see `require_finite`.
    """
    device = cond.embeds.device
    num_steps = schedule.num_steps
    # The bookkeeping stays on the CPU: it decides shapes, and would wait for the device each time.
    index = index.cpu().long()
    eta, branching = schedule.eta.cpu(), schedule.branching.cpu()
    stochastic = eta > 0
    roots = _count_roots(cond, schedule, group_sizes.cpu().long(), index)
    sde.check_eta(eta)
    check_split_scale(split_scale)
    sigmas = policy.sigmas(num_steps)
    if sigmas.shape != (num_steps + 1,):
        raise ValueError(f"policy.sigmas({num_steps}) has shape {tuple(sigmas.shape)}")
    check_falling(sigmas[:-1], sigmas[1:])
    level_sigmas = without_waiting(sigmas.float(), device)

    # With a shared start a prompt is one node, and its roots wait for the first stochastic step.
    waiting = roots.clone() if shared_start else torch.ones_like(roots)
    started = torch.ones_like(roots) if shared_start else roots
    row, number = _part(started)
    start = start_noise(noise, index[row], number, policy.latent_shape)
    nodes = _Nodes(
        latents=without_waiting(policy.initial_latents(start, float(sigmas[0])), device),
        row=row,
        number=number,
        edge=torch.full_like(row, -1),
    )
    paths = Paths(sampler, sigmas, len(row))
    levels: list[Transitions] = []
    parents: list[Tensor] = []
    num_edges = num_nodes = 0
    for step in range(num_steps):
        rows_cond = cond.select(without_waiting(nodes.row, device))
        if observer is not None and len(nodes.row) > 0:  # a rank may have no prompt
            observer.begin(step, nodes.row, policy.token_layout(rows_cond))
        sigma, sigma_next = level_sigmas[step : step + 2, None].expand(2, len(nodes.row))
        prediction = policy(nodes.latents, sigma, rows_cond)
        num_nodes += len(nodes.row)
        level = without_waiting(eta[nodes.row, step], device)
        gaussian = sde.step(prediction, nodes.latents, sigma, sigma_next, level)
        # Nodes into children. A deterministic node has one, with the number that it had.
        splits = stochastic[:, step]
        width = torch.where(splits, branching[:, step] * waiting, torch.ones_like(waiting))
        waiting = torch.where(splits, torch.ones_like(waiting), waiting)
        parent, child = _part(width[nodes.row])
        row = nodes.row[parent]
        number = nodes.number[parent] * width[row] + child
        edge = nodes.edge[parent]
        onward = paths.onward(step, nodes.latents, prediction, gaussian.mean)
        latents = onward[without_waiting(parent, device)]
        paths.follow(step, parent, splits[row])
        drawn = splits[row].nonzero().flatten()
        if len(drawn) > 0:
            source, target = (without_waiting(x, device) for x in (parent[drawn], drawn))
            transition = gaussian.select(source)
            keys = torch.stack([index[row], number, torch.full_like(number, step)], dim=1)
            draw = noise.normal("step", keys[drawn], policy.latent_shape)
            if split_scale is not None:
                own = torch.stack(
                    [index[nodes.row], nodes.number, torch.full_like(nodes.number, step)], dim=1
                )
                parting = (width > 1)[row[drawn]]
                siblings = parent[drawn][parting]
                draw[parting] = sibling_noise(noise, own, siblings, draw[parting], split_scale)
            latents[target] = transition.sample(without_waiting(draw, device))
            levels.append(
                Transitions(
                    latents=nodes.latents[source],
                    next_latents=latents[target],
                    mean=transition.mean,
                    step=torch.full_like(target, step),
                    log_prob=transition.log_prob(latents[target]),
                    row=without_waiting(row[drawn], device),
                )
            )
            parents.append(edge[drawn])
            edge[drawn] = torch.arange(num_edges, num_edges + len(drawn), device="cpu")
            num_edges += len(drawn)
        before, nodes = nodes, _Nodes(latents=latents, row=row, number=number, edge=edge)
        kept = paths_that_go_on(stopper, step, before.latents, prediction, sigma, before.row)
        if kept is not None:
            nodes = nodes.select(kept)
            paths.follow(step, kept, torch.zeros_like(kept, dtype=torch.bool))

    require_finite(policy, nodes.latents, watched=observer is not None)
    # A shared start that met no stochastic step: the group's images are copies of one node.
    leaf, _ = _part(waiting[nodes.row])
    leaf_rows = without_waiting(leaf, device)
    return RolloutTree(
        images=policy.decode(nodes.latents)[leaf_rows] if decode else None,
        latents=nodes.latents[leaf_rows],
        row=without_waiting(nodes.row[leaf], device),
        transitions=_concatenate(levels, policy.latent_shape, device),
        parent=without_waiting(
            torch.cat([torch.empty(0, dtype=torch.int64, device="cpu"), *parents]), device
        ),
        leaf_edge=without_waiting(nodes.edge[leaf], device),
        sigmas=level_sigmas,
        num_nodes=num_nodes,
    )


def start_noise(noise: KeyedNoise, index: Tensor, root: Tensor, shape: Sequence[int]) -> Tensor:
    """The noise that images start from.

    Args:
        noise: The noise of this iteration.
        index: (n,) int64 dataset row of each image's prompt.
        root: (n,) int64 number of the image, or of the tree it hangs on, among its prompt's.
        shape: Shape of one latent.

    Returns:
        (n, *shape) fp32 on the CPU.
    """
    return noise.normal("start", torch.stack([index, root, torch.zeros_like(root)], 1), shape)


def _count_roots(
    cond: Conditioning, schedule: ExplorationSchedule, group_sizes: Tensor, index: Tensor
) -> Tensor:
    """Roots per prompt, (B,); checks that the arguments belong to the same prompts."""
    num_prompts = len(cond)
    shapes = {
        "schedule": tuple(schedule.eta.shape[:1]),
        "group_sizes": tuple(group_sizes.shape),
        "index": tuple(index.shape),
    }
    wrong = [name for name, shape in shapes.items() if shape != (num_prompts,)]
    if wrong:
        raise ValueError(
            f"rollout needs one row per prompt: the conditioning has {num_prompts} rows, but "
            + ", ".join(f"{name} has shape {shape}" for name, shape in shapes.items())
        )
    if len(set(index.tolist())) != num_prompts:
        raise ValueError(
            f"a dataset row is in the batch twice, and both would get the same noise: {index}; "
            "draw each prompt once and raise its group size instead"
        )
    leaves_per_root = schedule.branching.cpu().prod(dim=1)
    whole = (group_sizes % leaves_per_root == 0) & (group_sizes >= 1)
    if not bool(whole.all()):
        row = int((~whole).nonzero()[0])
        leaves = int(leaves_per_root[row])
        raise ValueError(
            f"prompt {row} is to have {int(group_sizes[row])} images, but its schedule branches "
            f"into {leaves} leaves per root; give it a multiple of {leaves} images, or choose "
            "branching factors whose product divides the group size"
        )
    return group_sizes // leaves_per_root


def _part(widths: Tensor) -> tuple[Tensor, Tensor]:
    """Parts row i into widths[i] children: the row of each child, and its rank among siblings."""
    row = torch.repeat_interleave(torch.arange(len(widths), device="cpu"), widths)
    first = widths.cumsum(0) - widths
    return row, torch.arange(len(row), device="cpu") - first[row]


def _concatenate(
    levels: list[Transitions], latent_shape: tuple[int, ...], device: torch.device
) -> Transitions:
    """The transitions of all levels in one; none at all are still tensors of the right shape."""
    latents = torch.empty((0, *latent_shape), dtype=torch.float32, device=device)
    integers = torch.empty(0, dtype=torch.int64, device=device)
    none = Transitions(
        latents=latents,
        next_latents=latents,
        mean=latents,
        step=integers,
        log_prob=torch.empty(0, dtype=torch.float32, device=device),
        row=integers,
    )
    return Transitions.cat([none, *levels])
