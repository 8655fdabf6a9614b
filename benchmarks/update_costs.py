"""What an update costs in several ways, side by side in one run, as ratios.

    python benchmarks updates                  # the bundled model; on a GPU if there is one
    python benchmarks updates --rounds 7
    python benchmarks updates --only guidance --quick

One rollout is drawn; then every way of updating on it takes its turn, round after round, so that
whatever else runs on the machine slows all of them alike. Printed are medians over the rounds, of
the seconds and of their ratio to the first way's, and rows through the denoiser.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from machine import heading
from peft.tuners.lora.layer import Linear as LoraLinear
from steps import backward, drawn, halves, shapes
from torch import Tensor
from turns import Ways, take_turns

from aegpo.objectives.transition_samples import Replay
from aegpo.planning.activations import kept_bytes
from aegpo.policies import StableDiffusion3
from aegpo.policies.base import GuidanceGradient
from aegpo.policies.lora import adapters_disabled
from aegpo.policies.speed.adapted_linear import AdaptedLinear
from aegpo.utilities.tables import markdown_table


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    tables = {
        "old means": old_means,
        "guidance": guidance,
        "micro-batches": micro_batches,
        "adapters": adapters,
        "adapters in fp32": adapters_in_fp32,
        "projections": projections,
        "compiled": compiled,
    }
    parser = argparse.ArgumentParser(
        prog="python benchmarks updates", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=5, help="of which the medians are taken")
    parser.add_argument("--images", type=int, default=24, help="of a prompt; there are four")
    parser.add_argument("--quick", action="store_true", help="one round, small, nothing compiled")
    parser.add_argument("--only", choices=tables, nargs="+", help="tables to print")
    options = parser.parse_args(arguments)
    rounds, images = (1, 4) if options.quick else (options.rounds, options.images)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(heading(), flush=True)
    quick = [title for title in tables if title != "compiled"]
    for title in options.only or (quick if options.quick else tables):
        show(title, *tables[title](device, images), rounds)


def show(title: str, ways: Ways, policy: StableDiffusion3, rounds: int) -> None:
    """Let every way take its turn in every round, and print the table."""
    rows: dict[str, int] = {}

    def counting(way: str, run: Callable[[], object]) -> Callable[[], None]:
        def counted() -> None:
            before = sum(policy.evaluations.counts.values())
            run()
            rows[way] = sum(policy.evaluations.counts.values()) - before

        return counted

    taken = take_turns(
        {way: counting(way, run) for way, run in ways.items()}, rounds, policy.device
    )
    first = max(1, rows[next(iter(ways))])
    lines = [
        [way, f"{one.seconds:.3f}", f"{one.ratio:.3f}", str(rows[way]), f"{rows[way] / first:.3f}"]
        for way, one in taken.items()
    ]
    print(f"\n{markdown_table((title, 'seconds', 'ratio', 'rows', 'ratio'), lines)}\n", flush=True)


def old_means(device: str, images: int) -> tuple[Ways, StableDiffusion3]:
    """Two updates below fp32: old log-probs of both computed again, or of the second."""
    policy = shapes(device, dtype="bfloat16")
    half = torch.autocast(device, torch.bfloat16, cache_enabled=False)
    with half:
        samples = drawn(policy, images)
    one, two = halves(samples, 48)

    def both() -> None:
        with half:
            samples.rescore([*one, *two])
            backward(samples, one)
            backward(samples, two)

    def later() -> None:
        with half:
            samples.rescore(two)
            backward(samples, one, first=True)
            backward(samples, two)

    return {"all scored again": both, "the later ones": later}, policy


def guidance(device: str, images: int) -> tuple[Ways, StableDiffusion3]:
    """An update with guidance: the gradient through both branches, or through one."""
    policy = shapes(device, guidance_scale=3.0)
    samples = drawn(policy, images)
    one, _ = halves(samples, 48)

    def through(branches: GuidanceGradient) -> Callable[[], None]:
        def run() -> None:
            policy.guidance_gradient = branches
            backward(samples, one)

        return run

    kinds: tuple[GuidanceGradient, ...] = ("both", "conditional")
    ways: Ways = {branches: through(branches) for branches in kinds}
    whole, part = (gradient(samples, one, branches) for branches in kinds)
    cosine = float(torch.cosine_similarity(whole, part, dim=0))
    print(
        f"guidance {policy.guidance_scale:g}: the gradient through one branch has cosine "
        f"{cosine:.3f} with that through both, and {float(part.norm() / whole.norm()):.2f} "
        "times its length"
    )
    return ways, policy


def gradient(samples: Replay, micro_batches: list[Tensor], branches: GuidanceGradient) -> Tensor:
    """That of an update by all adapters."""
    policy = samples.policy
    policy.guidance_gradient = branches
    for which in micro_batches:
        samples.loss(which).loss.sum().backward()
    weights = policy.trainable_parameters()
    found = [weight.grad.flatten() for weight in weights if weight.grad is not None]
    policy.zero_grad()
    return torch.cat(found)


def micro_batches(device: str, images: int) -> tuple[Ways, StableDiffusion3]:
    """An update in micro-batches of several sizes."""
    policy = shapes(device)
    samples = drawn(policy, images)
    order = torch.arange(len(samples.tree.transitions), device=device)[: 8 * images]
    one, two = (
        kept_bytes(policy.denoiser, partial(samples.loss, order[:number])) for number in (1, 2)
    )
    print(f"autograd keeps {(two - one) / 2**20:.2f} MiB of a sample")

    def of(size: int) -> Callable[[], None]:
        return lambda: backward(samples, list(order.split(size)))

    return {str(size): of(size) for size in (192, 128, 96, 64, 48, 32, 24, 16)}, policy


def adapters(device: str, images: int) -> tuple[Ways, StableDiffusion3]:
    """A forward without adapters, with peft's, and with ours; below fp32 under autocast."""
    policy = shapes(device, dtype="bfloat16")
    return adapted(policy, images, torch.bfloat16), policy


def adapters_in_fp32(device: str, images: int) -> tuple[Ways, StableDiffusion3]:
    """The same in fp32."""
    policy = shapes(device)
    return adapted(policy, images, None), policy


def adapted(policy: StableDiffusion3, images: int, half: torch.dtype | None) -> Ways:
    """A forward with each kind of adapted layer."""
    layers = [one for one in policy.modules() if isinstance(one, AdaptedLinear)]
    weights = policy.trainable_parameters()
    rows = min(64, 4 * images)
    cond = policy.encode(["a red circle"] * rows)
    latents = torch.zeros(rows, *policy.latent_shape, device=policy.device)
    sigma = torch.full((rows,), 0.5, device=policy.device)
    ours = [layer._cast_input_dtype for layer in layers]
    peft = [partial(LoraLinear._cast_input_dtype, layer) for layer in layers]

    def forward(
        kind: type[LoraLinear] | None,
        casts: list[Any] = ours,
        dtype: torch.dtype = torch.float32,
        once: bool = False,
    ) -> Callable[[], None]:
        def run() -> None:
            for layer, cast in zip(layers, casts, strict=True):
                layer.__class__ = kind or AdaptedLinear
                layer._cast_input_dtype = cast
            for weight in weights:
                weight.data = weight.data.to(dtype)
            off = adapters_disabled(policy.trained) if kind is None else nullcontext()
            autocast = torch.autocast(
                policy.device.type, half, enabled=half is not None, cache_enabled=once
            )
            with torch.no_grad(), autocast, off:
                for _ in range(3):
                    policy(latents, sigma, cond)

        return run

    ways: Ways = {"without adapters": forward(None)}
    if half is not None:
        ways["peft's, inputs cast to fp32"] = forward(LoraLinear, peft)
    ways |= {"peft's": forward(LoraLinear), "ours": forward(AdaptedLinear)}
    if half is not None:
        ways["ours, weights cast once for three forwards"] = forward(AdaptedLinear, once=True)
        ways["ours, weights that need no cast"] = forward(AdaptedLinear, dtype=half)
    return ways


def projections(device: str, images: int) -> tuple[Ways, StableDiffusion3]:
    """A forward without adapters, with diffusers' fused query, key and value, and without."""
    policy = shapes(device)
    plain, fused = (policy.load_clean_pipeline().transformer.to(device) for _ in range(2))
    fused.fuse_qkv_projections()
    cond = policy.encode(["a red circle"] * 4 * images)
    inputs = {
        "hidden_states": torch.zeros(4 * images, *policy.latent_shape, device=device),
        "timestep": torch.full((4 * images,), 500.0, device=device),
        "encoder_hidden_states": cond.embeds,
        "pooled_projections": cond.pooled,
    }

    def forward(model: Any) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad():
                for _ in range(3):
                    model(**inputs)

        return run

    return {"apart": forward(plain), "fused": forward(fused)}, policy


def compiled(device: str, images: int) -> tuple[Ways, StableDiffusion3]:
    """A forward as in rollouts and an update, as Python and with compiled blocks."""
    plain, blocks = shapes(device), shapes(device, compile=True)
    samples = {"plain": drawn(plain, images), "compiled blocks": drawn(plain, images)}
    samples["compiled blocks"].policy = blocks
    blocks.evaluations = plain.evaluations
    order = torch.arange(min(96, len(samples["plain"].tree.transitions)), device=device)

    def run(way: str) -> None:
        with torch.no_grad():
            samples[way].step(order)
        backward(samples[way], [order])

    start = time.perf_counter()
    run("compiled blocks")
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    print(f"compiled {graphs} graphs in {time.perf_counter() - start:.1f} s, with their first run")
    return {way: partial(run, way) for way in samples}, plain


if __name__ == "__main__":
    main()
