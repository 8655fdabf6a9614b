"""What a rollout and an update cost beyond the bare calls of the networks that are in them.

    python benchmarks bare                    # the bundled model; on a GPU if there is one
    python benchmarks bare --rounds 9
    python benchmarks bare --quick

The bare calls are those that the rollout and the update make, on the same inputs: forward calls of
the denoiser and the decoder, and forward and backward calls with a plain sum as loss. All take
turns, so that whatever else runs slows them alike; ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from machine import heading
from steps import Draw, backward, drawn, shapes
from turns import Taken, take_turns

from aegpo.policies.diffusers_policy import DiffusersPolicy
from aegpo.utilities.tables import markdown_table

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a call, by place and by name."""
HEADER = ("", "seconds", "over the bare calls")


class Calls:
    """The calls of a policy's denoiser and decoder, which can be made again.

    Args:
        policy: Whose.
    """

    def __init__(self, policy: DiffusersPolicy) -> None:
        self.policy = policy
        self.denoiser: list[Call] = []
        self.decoder: list[Call] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Inside, calls are made as ever and noted."""
        vae: Any = self.policy.vae
        decode = vae.decode

        def note(_: object, places: tuple[Any, ...], names: dict[str, Any]) -> None:
            self.denoiser.append((places, names))

        def noting(*places: Any, **names: Any) -> Any:
            self.decoder.append((places, names))
            return decode(*places, **names)

        handle = self.policy.denoiser.register_forward_pre_hook(note, with_kwargs=True)
        vae.decode = noting
        try:
            yield
        finally:
            handle.remove()
            del vae.decode

    @torch.no_grad()
    def forward(self) -> None:
        """Make all of them."""
        for places, names in self.denoiser:
            self.policy.denoiser(*places, **names)
        for places, names in self.decoder:
            self.policy.vae.decode(*places, **names)

    def forward_and_backward(self) -> None:
        """Make those of the denoiser, with gradients, and forget these."""
        for places, names in self.denoiser:
            self.policy.denoiser(*places, **names)[0].sum().backward()
        self.policy.zero_grad()


def compared(device: str, images: int, rounds: int) -> dict[str, Taken]:
    """Time a rollout, an update, and the bare calls of both.

    Args:
        device: Where the bundled model runs.
        images: Images of each of four prompts.
        rounds: Rounds that count.

    Returns:
        What each took; `rollout` and `update` are set against their bare calls.
    """
    policy = shapes(device)
    draw, samples = Draw(policy, images), drawn(policy, images)
    parts = list(torch.arange(len(samples.tree.transitions), device=device).split(192))
    rollout, update = Calls(policy), Calls(policy)
    with rollout.noted():
        draw()
    with update.noted():
        backward(samples, parts)
    ways: dict[str, Callable[[], object]] = {
        "its bare calls": rollout.forward,
        "rollout": draw,
        "its bare forward and backward calls": update.forward_and_backward,
        "update": lambda: backward(samples, parts),
    }
    against = {way: "its bare forward and backward calls" for way in list(ways)[2:]}
    return take_turns(ways, rounds, device, against)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks bare", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=7, help="of which the medians are taken")
    parser.add_argument("--images", type=int, default=24, help="of a prompt; there are four")
    parser.add_argument("--quick", action="store_true", help="one round of four images a prompt")
    options = parser.parse_args(arguments)
    rounds, images = (1, 4) if options.quick else (options.rounds, options.images)
    print(f"{heading()}\n", flush=True)
    taken = compared("cuda" if torch.cuda.is_available() else "cpu", images, rounds)
    rows = [[way, f"{one.seconds:.3f}", f"{one.ratio:.3f}"] for way, one in taken.items()]
    print(markdown_table(HEADER, rows))


if __name__ == "__main__":
    main()
