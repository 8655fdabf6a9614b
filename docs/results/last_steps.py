"""Score trained policies of the quickstart with parts of their change left out.

python docs/results/last_steps.py RUN/checkpoints/last.ckpt [...]

512 held-out images, each variant from the same noise, in ten Euler steps: the adapters as they are,
at other strengths, and on the first steps alone, the base's prediction taking the others.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import cycle, islice

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from aegpo.policies import StableDiffusion3
from aegpo.policies.base import Policy
from aegpo.rewards import ShapesJudge, ShapesMatch
from aegpo.shapes.splits import split

IMAGES, STEPS = 512, 10

VARIANTS: dict[str, Callable[[int], float]] = {
    "as trained": lambda step: 1.0,
    "times .85": lambda step: 0.85,
    "times 1.15": lambda step: 1.15,
    "steps 0 to 7 alone": lambda step: float(step < STEPS - 2),
    "steps 0 to 5 alone": lambda step: float(step < STEPS - 4),
    "the base": lambda step: 0.0,
}


def draw(policy: Policy, texts: list[str], strength: Callable[[int], float]) -> Tensor:
    """Held-out images, (n, 3, H, W), with the adapters at a strength that depends on the step."""
    adapters = [part for part in policy.denoiser.modules() if isinstance(part, BaseTunerLayer)]
    own = [dict(adapter.scaling) for adapter in adapters]
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(len(texts), *policy.latent_shape, generator=generator)
    sigmas, cond = policy.sigmas(STEPS), policy.encode(texts)
    for step in range(STEPS):
        for adapter, scaling in zip(adapters, own, strict=True):
            adapter.scaling = {name: value * strength(step) for name, value in scaling.items()}
        velocity = policy(latents, sigmas[step].expand(len(texts)), cond)
        latents = latents + (sigmas[step + 1] - sigmas[step]) * velocity
    for adapter, scaling in zip(adapters, own, strict=True):
        adapter.scaling = scaling
    with policy.decoder_ready():
        return policy.decode(policy.clean_latents(latents))


@torch.no_grad()
def main() -> None:
    """A line for each checkpoint and variant: judge and match, means over the images."""
    policy = StableDiffusion3(
        pretrained="shapes",
        lora_rank=32,
        lora_targets=["attention", "feed_forward"],
        sigma_spacing="uniform",
        max_sequence_length=0,
        max_batch=256,
    )
    texts = list(islice(cycle(scene.text for scene in split("heldout")), IMAGES))
    nothing = [{} for _ in texts]
    for path in sys.argv[1:]:
        state = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
        policy.load_trainable_state_dict(
            {name.removeprefix("policy."): value for name, value in state.items()}
        )
        print(path)
        for name, strength in VARIANTS.items():
            images = draw(policy, texts, strength)
            judge, match = (
                float(reward(images, texts, nothing).mean())
                for reward in (ShapesJudge(), ShapesMatch())
            )
            print(f"  {name:<20} judge {judge:.3f}  match {match:.3f}", flush=True)


if __name__ == "__main__":
    main()
