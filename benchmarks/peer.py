"""A rollout and an update of ours beside the functions of flow_grpo, on one pipeline in one run.

    python benchmarks peer --flow-grpo ../flow_grpo        # a checkout of yifan123/flow_grpo
    python benchmarks peer --flow-grpo ../flow_grpo --quick

Theirs are `pipeline_with_logprob`, which draws and decodes, and `sde_step_with_logprob`, around
which their update calls the transformer and takes a clipped ratio. Both sides have the bundled
model with the same adapters, the same prompts and steps, noise at every step, no guidance, and
micro-batches of one size. None of their code is kept here.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from machine import heading
from steps import PROMPTS, STEPS, Draw, backward, drawn, shapes
from torch import Tensor
from turns import Ways, take_turns

from aegpo.policies import StableDiffusion3
from aegpo.utilities.tables import markdown_table

NOISE_LEVEL, CLIP = 0.7, 1e-3
FOLDER = "flow_grpo/diffusers_patch"
HEADER = ("", "micro-batch", "seconds", "theirs over ours")
SMALL = 96
"""A micro-batch that suits a CPU's cache better than the quickstart's 192."""


class Theirs:
    """Their functions on a policy's networks.

    Args:
        checkout: Where their repository lies.
        policy: Whose networks are run.
        images: Images of each prompt.

    Raises:
        SystemExit: If their functions are not there.
    """

    def __init__(self, checkout: Path, policy: StableDiffusion3, images: int) -> None:
        sys.path.insert(0, str(checkout))
        package = FOLDER.replace("/", ".")
        try:
            drawing = importlib.import_module(f"{package}.sd3_pipeline_with_logprob")
            stepping = importlib.import_module(f"{package}.sd3_sde_with_logprob")
        except ImportError as error:
            raise SystemExit(f"error: --flow-grpo {checkout}: {error}") from error
        finally:
            sys.path.remove(str(checkout))
        self.draws: Any = drawing.pipeline_with_logprob
        self.steps: Any = stepping.sde_step_with_logprob
        self.policy, self.number = policy, images * len(PROMPTS)
        self.pipeline: Any = policy.load_clean_pipeline().to(policy.device)
        self.pipeline.transformer = policy.denoiser
        self.pipeline.scheduler = policy.sampling_scheduler(self.pipeline.scheduler)
        cond = policy.encode([prompt for prompt in PROMPTS for _ in range(images)])
        assert cond.pooled is not None
        self.embeds, self.pooled = cond.embeds, cond.pooled
        self.rows = torch.arange(self.number, device=policy.device).repeat(STEPS - 1)

    def rollout(self) -> tuple[Tensor, Tensor, Tensor]:
        """Draw the images: states, next states and log-probs of all steps but the last."""
        _, states, log_probs = self.draws(
            self.pipeline,
            prompt_embeds=self.embeds,
            pooled_prompt_embeds=self.pooled,
            num_inference_steps=STEPS,
            guidance_scale=1.0,
            output_type="pt",
            height=self.policy.image_size.height,
            width=self.policy.image_size.width,
            noise_level=NOISE_LEVEL,
        )
        last = STEPS - 1
        return (
            torch.cat(states[:last]),
            torch.cat(states[1 : last + 1]),
            torch.cat(log_probs[:last]),
        )

    def update(self, drawn: tuple[Tensor, Tensor, Tensor], size: int) -> None:
        """Add up the gradient of a clipped ratio over all transitions, and forget it."""
        times = self.pipeline.scheduler.timesteps[: STEPS - 1].repeat_interleave(self.number)
        advantages = torch.linspace(-1, 1, self.number, device=self.policy.device)[self.rows]
        for part in torch.arange(len(self.rows), device=self.policy.device).split(size):
            states, following, old = (tensor[part] for tensor in drawn)
            prediction = self.pipeline.transformer(
                hidden_states=states,
                timestep=times[part],
                encoder_hidden_states=self.embeds[self.rows[part]],
                pooled_projections=self.pooled[self.rows[part]],
                return_dict=False,
            )[0]
            _, log_prob, _, _ = self.steps(
                self.pipeline.scheduler,
                prediction.float(),
                times[part],
                states.float(),
                prev_sample=following.float(),
                noise_level=NOISE_LEVEL,
            )
            ratio = torch.exp(log_prob - old)
            clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
            torch.maximum(-advantages[part] * ratio, -advantages[part] * clipped).sum().backward()
        self.policy.zero_grad()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks peer", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--flow-grpo", type=Path, metavar="PATH", help="their checkout")
    parser.add_argument("--rounds", type=int, default=5, help="of which the medians are taken")
    parser.add_argument("--images", type=int, default=24, help="of a prompt; there are four")
    parser.add_argument("--quick", action="store_true", help="one round of four images a prompt")
    options = parser.parse_args(arguments)
    rounds, images = (1, 4) if options.quick else (options.rounds, options.images)
    print(f"{heading()}\n", flush=True)
    if options.flow_grpo is None:
        row = ["flow_grpo", "", "not run: give --flow-grpo PATH, a checkout of it", ""]
        print(markdown_table(HEADER, [row]))
        return
    policy = shapes("cuda" if torch.cuda.is_available() else "cpu")
    draw, samples = Draw(policy, images, STEPS - 1), drawn(policy, images, STEPS - 1)
    theirs = Theirs(options.flow_grpo, policy, images)
    stored = theirs.rollout()
    order = torch.arange(len(samples.tree.transitions), device=policy.device)
    ways: Ways = {"rollout, ours": draw, "rollout, theirs": theirs.rollout}
    against, sizes = {"rollout, theirs": "rollout, ours"}, dict.fromkeys(ways, "")
    for size in (192, SMALL):
        ours, other = f"update of {size}, ours", f"update of {size}, theirs"
        ways[ours] = lambda size=size: backward(samples, list(order.split(size)))  # type: ignore[misc]
        ways[other] = lambda size=size: theirs.update(stored, size)  # type: ignore[misc]
        against |= {ours: ours, other: ours}
        sizes |= {ours: str(size), other: str(size)}
    taken = take_turns(ways, rounds, policy.device, against)
    rows = [
        [way, sizes[way], f"{one.seconds:.3f}", f"{one.ratio:.3f}"] for way, one in taken.items()
    ]
    print(markdown_table(HEADER, rows))


if __name__ == "__main__":
    main()
