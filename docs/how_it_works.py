"""Draws the figures of how_it_works.md from the bundled Shapes base; half a minute of a core.

    python docs/how_it_works.py [FOLDER]

They go to FOLDER, `docs/images` by default. Nothing in them is drawn by hand.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from aegpo.advantages import GroupRelative
from aegpo.entropy import EntropyReading, EntropyRecorder
from aegpo.exploration import EntropyPeaks, ExplorationSchedule
from aegpo.noise import KeyedNoise
from aegpo.policies import StableDiffusion3
from aegpo.prompts import PromptBatch
from aegpo.prompts.sets import bundled_records
from aegpo.rewards import ShapesMatch
from aegpo.rollout import rollout
from aegpo.rollout.loop import start_noise
from aegpo.sde import ODE, FlowSDE
from aegpo.selection import Extremes
from aegpo.study.step_trials import draw_groups, group_spread, single_step_groups

STEPS, ETA, TOP_K = 10, 0.7, 4
BLUE, ORANGE, GREY = "#3f51b5", "#e67e22", "#9e9e9e"


def main() -> None:
    """Draw all of them."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images"
    torch.manual_seed(0)
    policy = StableDiffusion3("shapes", sigma_spacing="uniform", max_sequence_length=0)
    batch = held_out(12)
    with torch.no_grad():
        draws = {"denoising": denoising, "steps": steps, "group": group}
        for name, draw in draws.items():
            draw(policy, batch).savefig(folder / f"how_{name}.png", dpi=80)


def held_out(number: int) -> PromptBatch:
    """Prompts of every kind, evenly from the held-out split."""
    rows = bundled_records("shapes:heldout")
    rows = rows[:: len(rows) // number][:number]
    return PromptBatch(
        [row["prompt"] for row in rows],
        torch.arange(number),
        [{key: value for key, value in row.items() if key != "prompt"} for row in rows],
    )


def denoising(policy: StableDiffusion3, batch: PromptBatch) -> Figure:
    """What the model believes at every step, and how diffuse its attention is there."""
    some = [1, 4, 7]
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    grid = figure.add_gridspec(len(some) + 1, STEPS, height_ratios=[1, 1, 1, 1.5])
    cond, sigmas = policy.encode([batch.prompts[row] for row in some]), policy.sigmas(STEPS)
    roots = torch.zeros(len(some), dtype=torch.long)
    latents = start_noise(KeyedNoise(0), torch.tensor(some), roots, policy.latent_shape)
    for step, (now, after) in enumerate(pairwise(sigmas)):
        velocity = policy(latents, now.expand(len(some)), cond)
        believed = policy.decode(latents - now * velocity)  # x - sigma v: where the path would end
        for place, row in enumerate(some):
            axes = picture(figure.add_subplot(grid[place, step]), believed[place])
            if place == 0:
                axes.set_title(f"step {step}", fontsize=9)
            if step == 0:
                axes.set_ylabel(wrapped(batch.prompts[row]), fontsize=7, rotation=0, ha="right")
        latents = latents + (after - now) * velocity
    axes = figure.add_subplot(grid[len(some), :])
    draw_entropy(axes, policy, batch)
    return figure


def draw_entropy(axes: Axes, policy: StableDiffusion3, batch: PromptBatch) -> Tensor:
    """Entropy(t) of the last block, and its peaks; returns the steps that were chosen, (T,)."""
    recorder = EntropyRecorder(layers=["transformer_blocks.3.attn"], tokens="all_to_all")
    schedule = ExplorationSchedule.deterministic(len(batch), STEPS)
    sizes, noise = torch.ones(len(batch), dtype=torch.long), KeyedNoise(0)
    with recorder.record(policy) as recording:
        cond = policy.encode(batch.prompts)
        rollout(policy, ODE(), cond, schedule, sizes, noise, batch.index, observer=recording)
    reading = EntropyReading(recording.curve())
    curve = reading.curve.mean(dim=0)
    selector = EntropyPeaks(top_k=TOP_K, scope="batch")
    chosen = selector(reading, noise, batch.index, STEPS).stochastic[0]
    for step in chosen.nonzero().flatten().tolist():
        axes.axvspan(step - 0.4, step + 0.4, color=ORANGE, alpha=0.25, lw=0)
    axes.plot(curve, color=BLUE, marker="o")
    axes.set(xlim=(-0.5, STEPS - 0.5), xticks=range(STEPS), xlabel="step", ylabel="Entropy(t)")
    axes.set_title("attention entropy, mean of 12 prompts; shaded: its four peaks", fontsize=9)
    return chosen


def steps(policy: StableDiffusion3, batch: PromptBatch) -> Figure:
    """The same start, noise at one step alone: what exploring there can teach."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.25, 1])
    shown, images, row = (0, 3, 8), 7, 4
    rows = left.subplots(len(shown), images)
    left.suptitle(f"“{batch.prompts[row]}”: one start, noise at one step", fontsize=9)
    spread = []
    for step in range(STEPS - 1):
        drawn = single_step_groups(
            *(policy, FlowSDE(), ShapesMatch(), batch, KeyedNoise(0)),
            step=step, num_steps=STEPS, images=8, eta=ETA, purpose="other",
        )  # fmt: skip
        spread.append(float(group_spread(drawn.rewards).mean()))
        if step in shown:
            assert drawn.tree.images is not None
            own = drawn.tree.images[drawn.tree.row == row]
            for place, axes in enumerate(rows[shown.index(step)]):
                picture(axes, own[place])
            rows[shown.index(step)][0].set_ylabel(f"step {step}", fontsize=9)
    above, below = right.subplots(2, 1, sharex=True)
    above.bar(range(STEPS - 1), spread, color=GREY)
    above.set_title("spread of the reward when this step alone draws noise", fontsize=9)
    draw_entropy(below, policy, batch)
    return figure


def group(policy: StableDiffusion3, batch: PromptBatch) -> Figure:
    """A group, its rewards, and which of its images are trained on."""
    row, size = 7, 16
    one = PromptBatch([batch.prompts[row]], batch.index[row : row + 1], [batch.metadata[row]])
    schedule = ExplorationSchedule.deterministic(1, STEPS)
    drawn = draw_groups(
        *(policy, ODE(), ShapesMatch(), one, KeyedNoise(0), schedule),
        images=size, shared_start=False, purpose="other",
    )  # fmt: skip
    rewards = drawn.rewards[0]
    advantages = GroupRelative()(rewards, torch.zeros(size, dtype=torch.long)).values
    kept = Extremes(keep=8, split="even").weigh(advantages.double(), 0, KeyedNoise(0))
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    figure.suptitle(
        f"“{one.prompts[0]}”: sixteen images, best first; framed are trained on", fontsize=9
    )
    assert drawn.tree.images is not None
    places = figure.subplots(2, size // 2).flatten()
    for axes, image in zip(places, rewards.argsort(descending=True).tolist(), strict=True):
        picture(axes, drawn.tree.images[image])
        axes.set_xlabel(f"{rewards[image]:.2f}   A {advantages[image]:+.1f}", fontsize=8)
        for side in axes.spines.values():
            side.set(
                visible=bool(kept[image]), color=BLUE if advantages[image] > 0 else ORANGE, lw=3
            )
    return figure


def picture(axes: Axes, image: Tensor) -> Axes:
    """Show an image (3, H, W) in [0, 1] without axes; its frame is there, unseen."""
    axes.imshow(image.clamp(0, 1).permute(1, 2, 0).cpu(), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for side in axes.spines.values():
        side.set_visible(False)
    return axes


def wrapped(text: str, words: int = 3) -> str:
    """A text on several lines."""
    parts = text.split()
    return "\n".join(" ".join(parts[at : at + words]) for at in range(0, len(parts), words))


if __name__ == "__main__":
    main()
