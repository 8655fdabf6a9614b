"""What steps without noise cost and give: the judge's score and the distance to the exact images.

    python benchmarks samplers            (the tables of docs/samplers.md)
    python benchmarks samplers --quick    (within a minute)

Draws held-out prompts of the Shapes world with the bundled base, by every sampler in few to many
steps, all from the same noise. The reference takes 200 two-step Adams-Bashforth steps. Spacing
"uniform" is the quickstart's, "scheduler" that of Stable Diffusion 3.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from aegpo.policies import StableDiffusion3
from aegpo.policies.sigmas import Spacing
from aegpo.prompts import PromptBatch
from aegpo.rewards import ShapesJudge, ShapesMatch
from aegpo.rollout import deterministic_rollout
from aegpo.samplers import AdamsBashforth, DPMSolver, Sampler, UniPC, sampler_name
from aegpo.utilities.tables import markdown_table
from datamodules.prompt_datamodule import FixedImages, PromptDataset
from lightning_modules.policy_module import EVALUATION_NOISE

SAMPLERS: tuple[Sampler | None, ...] = (
    None,
    AdamsBashforth(),
    DPMSolver(),
    UniPC(),
    UniPC(order=3),
)
STEPS = (3, 4, 5, 6, 8, 10, 20)
REFERENCE = 200


class Drawn:
    """Held-out images by one sampler, and what they are worth.

    Args:
        policy: What draws.
        batch: The images' prompts; they start from the noise of every evaluation.
        steps: Denoising steps.
        sampler: What takes them.
    """

    def __init__(
        self, policy: StableDiffusion3, batch: PromptBatch, steps: int, sampler: Sampler | None
    ) -> None:
        tree = deterministic_rollout(
            policy, batch.prompts, batch.index, steps, EVALUATION_NOISE, sampler=sampler
        )
        assert tree.images is not None
        self.latents = tree.latents
        self.scores: dict[str, Tensor] = {}
        for reward in (ShapesMatch(), ShapesJudge()):
            reward.setup(tree.images.device)
            scores = reward(tree.images, batch.prompts, batch.metadata)
            self.scores[reward.name] = torch.as_tensor(scores)

    def row(self, reference: Drawn) -> list[str]:
        """Distance, the two scores with their standard errors, and agreement with the reference."""
        distance = (self.latents - reference.latents).square().mean().sqrt()
        cells = [f"{float(distance / reference.latents.square().mean().sqrt()):.3f}"]
        for scores in self.scores.values():
            error = float(scores.std()) / len(scores) ** 0.5
            cells.append(f"{float(scores.mean()):.3f} ± {error:.3f}")
        match = [one.scores["shapes_match"].tolist() for one in (self, reference)]
        return [*cells, f"{statistics.correlation(*match):.2f}"]


def table(spacing: Spacing, images: int, steps: tuple[int, ...]) -> str:
    """Draw with one spacing of the noise levels; the rows as Markdown."""
    policy = StableDiffusion3(
        "shapes", lora_rank=8, sigma_spacing=spacing, max_sequence_length=0, max_batch=256
    )
    held_out = FixedImages(PromptDataset("shapes:heldout", "prompt"), images)
    batch = PromptBatch.collate([held_out[number] for number in range(images)])
    reference = Drawn(policy, batch, REFERENCE, AdamsBashforth())
    rows = [["reference", str(REFERENCE), *reference.row(reference)]]
    for sampler in SAMPLERS:
        for count in steps:
            drawn = Drawn(policy, batch, count, sampler)
            rows.append([sampler_name(sampler), str(count), *drawn.row(reference)])
            print(*rows[-1], flush=True)
    header = ("sampler", "evaluations", "distance", "match", "judge", "correlation of match")
    return markdown_table(header, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table for each spacing."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks samplers", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="few prompts and steps")
    parser.add_argument("--spacing", choices=("uniform", "scheduler"), help="one table alone")
    parser.add_argument("--images", type=int, help="held-out images; 512, or 32 if quick")
    given = parser.parse_args(arguments)
    images = given.images or (32 if given.quick else 512)
    spacings: tuple[Spacing, ...] = ("uniform",) if given.quick else ("uniform", "scheduler")
    if given.spacing is not None:
        spacings = (given.spacing,)
    for spacing in spacings:
        print(f"\n{images} held-out images, spacing {spacing}\n")
        print(table(spacing, images, (4, 10) if given.quick else STEPS), flush=True)


if __name__ == "__main__":
    main()
