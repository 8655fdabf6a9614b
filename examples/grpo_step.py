"""One GRPO step without a training framework: six verbs on the bundled Shapes pipeline.

    python examples/grpo_step.py

`lightning_modules.AEGPOModule` takes the same step, with entropy, several ranks and checkpoints.
"""

from __future__ import annotations

import torch

from aegpo.advantages import GroupRelative
from aegpo.exploration import FixedSteps
from aegpo.noise import KeyedNoise
from aegpo.objectives import Experience, PolicyGradient
from aegpo.policies import StableDiffusion3
from aegpo.rewards import ShapesMatch
from aegpo.rollout import rollout
from aegpo.sde import FlowSDE

PROMPTS = ["a red circle", "two blue squares", "a green cross and a yellow circle"]
INDEX = torch.arange(len(PROMPTS))  # their dataset rows: what the noise is keyed by


def main() -> None:
    """Take the step, and print what it did to the transitions that it learned from."""
    policy = StableDiffusion3("shapes", sigma_spacing="uniform", max_sequence_length=0)
    sde, reward, advantage = FlowSDE(), ShapesMatch(), GroupRelative()
    selector, objective = FixedSteps([0, 1, 2], eta=0.7), PolicyGradient(clip_range=1e-3)
    parameters = policy.trainable_parameters()
    optimizer = torch.optim.AdamW(parameters, lr=3e-4, weight_decay=0.0)
    noise, sizes = KeyedNoise(seed=0, iteration=0), torch.full_like(INDEX, 12)

    schedule = selector(None, noise, INDEX, 8)  # 1 decide which of the 8 steps explore
    cond = policy.encode(PROMPTS)  # 2 encode
    tree = rollout(policy, sde, cond, schedule, sizes, noise, INDEX)  # 3 draw
    assert tree.images is not None
    texts = [PROMPTS[row] for row in tree.row]
    rewards = reward(tree.images, texts, [{} for _ in texts])  # 4 score
    advantages = advantage(rewards, tree.row).values  # 5 compare
    samples = objective.samples(
        Experience(policy, sde, cond, tree, schedule, rewards, advantages, INDEX, noise)
    )
    rows = torch.arange(len(tree.transitions))
    samples.loss(rows).loss.mean().backward()  # 6 update
    norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()

    for row, prompt in enumerate(PROMPTS):
        own = rewards[tree.row == row]
        print(f"{prompt}: {len(own)} images, reward {own.mean():.3f} ± {own.std():.3f}")
    ratio = samples.loss(rows).ratio
    assert ratio is not None
    better, worse = (ratio[sign * samples.advantages > 0].mean() - 1 for sign in (1, -1))
    print(f"{len(rows)} transitions, gradient norm {norm:.4f}; how much likelier each is now:")
    print(f"to images above their group's mean {better:+.1e}, below it {worse:+.1e}")


if __name__ == "__main__":
    main()
