"""Entropy(t) of the bundled Shapes base, or of any diffusers pipeline that a policy drives.

Give its folder or hub id, and prompts if you like, for instance
`python examples/entropy_curve.py stabilityai/stable-diffusion-3.5-medium "a cat" "two dogs"`.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from diffusers import DiffusionPipeline

from aegpo import policies
from aegpo.entropy import EntropyRecorder, Recording
from aegpo.exploration import ExplorationSchedule
from aegpo.noise import KeyedNoise
from aegpo.policies.pretrained import find_pipeline
from aegpo.rollout import rollout
from aegpo.sde import ODE

STEPS, IMAGES_PER_PROMPT = 10, 4
SETTINGS: dict[str, Any] = {"shapes": {"sigma_spacing": "uniform", "max_sequence_length": 0}}


def record(policy: policies.Policy, prompts: list[str]) -> Recording:
    """Draw a few images of each prompt without exploration, watching every attention layer."""
    recorder = EntropyRecorder(tokens="all_to_all")
    schedule = ExplorationSchedule.deterministic(len(prompts), STEPS)
    index, sizes = torch.arange(len(prompts)), torch.full((len(prompts),), IMAGES_PER_PROMPT)
    cond, noise = policy.encode(prompts), KeyedNoise(seed=0)
    with recorder.record(policy) as recording:
        rollout(policy, ODE(), cond, schedule, sizes, noise, index, observer=recording)
        return recording


def main() -> None:
    """Print the mean curve, its peaks, and the layer in which the entropy moves most."""
    pretrained, *prompts = sys.argv[1:] or ["shapes"]
    name = DiffusionPipeline.load_config(find_pipeline(pretrained))["_class_name"]
    family = name.removesuffix("Pipeline")  # StableDiffusion3, Flux, ...
    if family not in policies.__all__:
        sys.exit(f"{pretrained} is a {name}, which no policy drives; docs/policies.md has a list")
    settings = SETTINGS.get(pretrained, {"dtype": "bfloat16"})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy = getattr(policies, family)(pretrained, **settings).to(device)
    recording = record(policy, prompts or ["a red circle", "a red circle and a blue square"])
    curve, layers = recording.curve().mean(dim=0), recording.per_layer()
    peaks = curve[:-1].topk(4).indices  # the last step never explores
    most = int(layers.std(dim=1).argmax())
    bars = (40 * (curve - curve.min()) / (curve.max() - curve.min())).int().tolist()
    print(f"{name}: entropy in units of ln(keys); the last column is {recording.layer_names[most]}")
    for step, (mean, there) in enumerate(zip(curve.tolist(), layers[most].tolist(), strict=True)):
        mark = "peak" if step in peaks else "    "
        print(f"step {step}  {mean:.4f} {'#' * bars[step]:<40} {mark} {there:.4f}")


if __name__ == "__main__":
    main()
