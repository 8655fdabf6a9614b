"""Two ranks between which a model is spread draw and learn what one process does."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from fitting_case import train as train_what_fits
from fsdp_cases import Case, Lonely, refusal, train
from rank_pair import on_ranks
from rank_trace import assert_same_run
from safetensors.torch import load_file
from test_rank_runs import fit
from tiny_families import FAMILIES

from aegpo.allocation import ProportionalAllocator, UniformAllocator
from aegpo.exploration import NoSteps
from aegpo.objectives import NFT
from aegpo.utilities.checkpoint_files import write_whole_checkpoints
from callbacks.ema import EMA
from callbacks.rollout_checkpoint import RolloutCheckpoint
from callbacks.step_spread import TrialSpread
from lightning_modules.training.fsdp2 import FSDP2

# Three prompts on two ranks, groups of two and more, calls of at most four rows: every rollout,
# micro-batch and evaluation has more calls on one rank than on the other.
RAGGED = {"allocator": ProportionalAllocator(images_per_prompt=3)}
FULL = {"full_finetuning": True}
SHORT = {"batches_per_epoch": 2}  # from the second iteration on ΔEntropy decides the sizes


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """Folders of tiny pipelines by family, written when they are first asked for."""
    folder, made = tmp_path_factory.mktemp("pipelines"), {}

    def of(name):
        if name not in made:
            family = next(one for one in FAMILIES if one.name == name)
            made[name] = folder / name
            family.pipeline().save_pretrained(made[name], safe_serialization=True)
        return made[name]

    return of


@pytest.fixture
def case(pipelines):
    def of(family="StableDiffusion3", policy=None, **more):
        return Case(family, pipelines(family), {"max_batch": 4, **(policy or {})}, **more)

    return of


def compare(one, two, rtol=1e-4, atol=3e-6):
    """The same noise, steps, sizes, rewards, costs and weights, up to the order of sums."""
    order = lambda tree: (tree["iteration"], tree["prompt"])  # noqa: E731
    trees = [
        sorted(found, key=order) for found in (one["trees"], two[0]["trees"] + two[1]["trees"])
    ]
    assert len(trees[0]) == len(trees[1]) > 0
    for alone, shared in zip(*trees, strict=True):
        for name in ("iteration", "prompt", "steps", "images"):
            assert alone[name] == shared[name], name
        assert shared["rewards"] == pytest.approx(alone["rewards"], rel=rtol, abs=atol)
        assert shared["latents"] == pytest.approx(alone["latents"], rel=rtol)
    assert len(one["rows"]) == len(two[0]["rows"])
    for alone, shared in zip(one["rows"], two[0]["rows"], strict=True):
        assert alone.keys() == shared.keys()
        for name in alone:
            if name.startswith(("cost/", "rollout/images")) or name in ("prompts", "step"):
                assert shared[name] == alone[name], name
            elif name.startswith(("val/", "reward/", "ratio/mean", "update/")):
                assert shared[name] == pytest.approx(alone[name], rel=50 * rtol, abs=atol), name
    for kind in ("weights", "averaged"):
        for rank in two:
            assert rank[kind].keys() == one[kind].keys()
            for name, weight in one[kind].items():
                np.testing.assert_allclose(rank[kind][name], weight, rtol, atol, err_msg=name)


def trained_on_both(pair, tmp_path, case):
    one = train(copy.deepcopy(case), tmp_path, False)
    two = pair.run(train, case, tmp_path, True)
    # Each rank holds half of every tensor, up to padding, and something was learned.
    assert all(abs(rank["local"] - rank["whole"] / 2) < 0.05 * rank["whole"] for rank in two)
    assert one["rows"][-1]["update/gradient_norm"] > 0
    return one, two


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_with_adapters(pair, case, tmp_path, family):
    # One family goes through all five iterations, with sizes and prompts that follow entropy.
    settings, data = RAGGED, {}
    if family.name != "StableDiffusion3":  # the second step moves lora_A, which the first does not
        settings, data = RAGGED | {"updates_per_epoch": 2}, {"batches_per_epoch": 1}
    one, two = trained_on_both(pair, tmp_path, case(family.name, settings=settings, data=data))
    compare(one, two)
    assert sum(rank["padded"] for rank in two) > 0


ONE_BRANCH = {"guidance_scale": 3.0, "guidance_gradient": "conditional"}
"""A call with a graph and one without, by turns."""


@pytest.mark.parametrize(
    ("family", "policy", "iterations"), [("StableDiffusion", ONE_BRANCH, 1), ("Flux", {}, 2)]
)
def test_full_finetuning_with_a_spread_reference(pair, case, tmp_path, family, policy, iterations):
    settings = RAGGED | {"updates_per_epoch": 2}  # the second is of weights that have moved
    of = case(
        family, FULL | policy, settings=settings, data=SHORT | {"batches_per_epoch": iterations}
    )
    one, two = trained_on_both(pair, tmp_path, of)
    compare(one, two)


def test_lagging_and_averaged_weights_are_spread_too(pair, case, tmp_path):
    levels = {"times_per_image": 2, "levels": "stratified", "level_range": (0.0, 0.6)}
    # Of anchors a rank may have more than the other, or none: their calls are padded.
    objective = NFT(decay_rate=0.2, **levels, anchor_coeff=0.5)
    settings = {"step_selector": NoSteps(), "objective": objective}
    settings["kl_coeff"] = 0.0  # NFT has its own
    of = case("Sana", FULL, settings=RAGGED | settings, callbacks=[EMA(decay=0.5)], data=SHORT)
    one, two = trained_on_both(pair, tmp_path, of)
    compare(one, two)
    assert one["averaged"]
    moved = [np.abs(one["averaged"][name] - one["weights"][name]).max() for name in one["weights"]]
    assert max(moved) > 1e-6


def test_a_rank_may_have_no_prompt(pair, case, tmp_path):
    # One prompt, so that the second rank has nothing to try, to draw, to learn or to validate.
    more = {"callbacks": [TrialSpread(2, prompts=1)], "probe": {"source": "rollouts"}}
    more["data"] = {"batch_size": 1, "val_batch_size": 1, "val_images": 1, "batches_per_epoch": 2}
    one, two = trained_on_both(pair, tmp_path, case(settings=RAGGED, **more))
    assert two[0]["padded"] == 0 and two[1]["padded"] > 0
    compare(one, two)


def test_bf16_with_frozen_bf16_weights_and_checkpointed_activations(pair, case, tmp_path):
    """Below fp32 old log-probs are computed again, on as many micro-batches as a rank has."""
    policy = {"dtype": "bfloat16", "gradient_checkpointing": True}
    # Rounding may not decide how many images a prompt gets, or which prompts come.
    more = {"settings": {"allocator": UniformAllocator(3)}, "probe": None, "data": SHORT}
    of = case("Flux", policy, trainer={"precision": "bf16-mixed"}, **more)
    one, two = trained_on_both(pair, tmp_path, of)
    assert "ratio/rollout_max_dev" in two[0]["rows"][-1]
    compare(one, two, rtol=3e-2, atol=3e-3)


def fitted(pair, case, folder, sharded, epochs, **more):
    """One process or two ranks train up to some epochs, and write `last.ckpt` to the folder."""
    folder.mkdir(exist_ok=True)
    trainer = {"max_epochs": epochs, "limit_val_batches": 0}
    of = copy.deepcopy(case)
    of.trainer, of.callbacks = trainer, [EMA(), RolloutCheckpoint(dirpath=str(folder))]
    of.ckpt_path = more.get("ckpt_path")
    return pair.run(train, of, folder, True)[0] if sharded else train(of, folder, False)


@pytest.mark.parametrize(
    ("policy", "ways"),  # sharded at first, sharded then
    [({}, [(True, False), (False, True)]), (FULL, [(True, True)])],
    ids=["adapters", "full"],
)
def test_checkpoints_are_those_of_one_process(pair, case, tmp_path, policy, ways):
    of = case("StableDiffusion3", policy, settings=RAGGED, data={"batches_per_epoch": 1})
    whole = fitted(pair, of, tmp_path / "whole", False, 2)
    saved = {}
    for sharded in (False, True):
        folder = tmp_path / f"first{sharded}"
        fitted(pair, of, folder, sharded, 1)
        saved[sharded] = torch.load(folder / "last.ckpt", weights_only=True)
        assert saved[False].keys() == saved[sharded].keys()
        for part in ("state_dict", "optimizer_states", "aegpo"):  # callbacks list in ranks' order
            assert_same(saved[False][part], saved[sharded][part], part)
    for first, then in ways:
        path = str(tmp_path / f"first{first}" / "last.ckpt")
        resumed = fitted(pair, of, tmp_path / f"{first}{then}", then, 2, ckpt_path=path)
        assert len(resumed["rows"]) == 1
        for kind in ("weights", "averaged"):
            for name, weight in whole[kind].items():
                np.testing.assert_allclose(resumed[kind][name], weight, 1e-4, 3e-6, err_msg=name)


def assert_same(one, two, where):
    """Nested values are equal, tensors up to the order of sums."""
    if isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape) == (two.dtype, two.shape), where
        torch.testing.assert_close(
            two, one, rtol=1e-3, atol=1e-5, equal_nan=True, msg=lambda text: f"{where}: {text}"
        )
    elif isinstance(one, dict):
        assert isinstance(two, dict) and list(one) == list(two), where
        for name in one:
            assert_same(one[name], two[name], f"{where}.{name}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), where
        for number, pair in enumerate(zip(one, two, strict=True)):
            assert_same(*pair, f"{where}[{number}]")


def test_what_cannot_be_spread_is_refused(pair, case, tmp_path):
    line = pair.run(refusal, case(policy={"compile": True}), tmp_path)[0]
    assert line.endswith("does not go with model.policy.compile=true; leave one of them out")
    for settings, named in [
        ({"policy": {"gradient_checkpointing": "auto"}}, "policy.gradient_checkpointing=auto"),
        ({"settings": {"micro_batch_size": "auto"}}, "model.micro_batch_size=auto"),
    ]:
        assert named in pair.run(refusal, case(**settings), tmp_path)[0]
    line = pair.run(refusal, case(optimizer="AdamW8bit"), tmp_path)[1]
    assert "AdamW8bit of bitsandbytes" in line and "use torch.optim.AdamW" in line


def test_ranks_agree_on_what_fits_all_of_them(pair, tiny_sd3_folder, tmp_path):
    """Under DDP, where each could fill its own memory."""
    found = pair.run(train_what_fits, tiny_sd3_folder, tmp_path, [1e12, 1.0])
    assert [rank[:2] for rank in found] == [(1, True), (1, True)]


def test_a_call_that_other_ranks_cannot_know_of_is_an_error(pair, case, tmp_path):
    line = pair.run(refusal, case(callbacks=[Lonely()]), tmp_path)[0]
    assert line.startswith("the policy was called outside of `policy.together()`")


def test_the_quickstart_from_the_command_line(tmp_path):
    """With all its callbacks, its sanity check and pictures, and a checkpoint for one process."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    on_ranks(one, fit(one), ranks=1)
    on_ranks(two, fit(two, "--trainer.devices", "2", "--trainer.strategy", "fsdp2"))
    assert_same_run(one / "trace.json", two / "trace.json")
    last = str(next(two.rglob("last.ckpt")))
    drawn = ["--ckpt_path", last, "--prompts", "a red circle", "--out", "images"]
    export = ["--ckpt_path", last, "--out"]
    _, spread = fit(two, "--trainer.devices", "2", "--trainer.strategy", "fsdp2")
    _, alone = fit(one)
    own = ["--ckpt_path", str(next(one.rglob("last.ckpt"))), "--out"]
    (ended,) = on_ranks(
        two,
        (two, ["sample", *spread[1:], *drawn]),
        (two, ["export", *spread[1:], *export, "exported"]),
        (one, ["export", *alone[1:], *own, "exported"]),
        ranks=1,
    )
    # It says so after it has loaded the export into the pipeline.
    assert "trained weights differ by 0.0e+00" in ended.output
    exported, expected = (
        load_file(next((folder / "exported").glob("*.safetensors"))) for folder in (two, one)
    )
    assert exported.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(exported[name], tensor, rtol=1e-3, atol=1e-6, msg=name)


def test_files_of_others_are_refused(tmp_path):
    """As everywhere: nothing that is unpickled runs, and one line says what the file is."""
    strategy = FSDP2()
    write_whole_checkpoints(strategy)
    for content, line in (
        ({"a": torch.zeros(1)}, "holds a, and is no checkpoint"),
        ({"a": Opaque()}, "unpickling them runs the code in them"),
    ):
        torch.save(content, tmp_path / "file.ckpt")
        with pytest.raises(ValueError, match=line):
            strategy.load_checkpoint(tmp_path / "file.ckpt", weights_only=None)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        strategy.load_checkpoint(tmp_path / "missing.ckpt")
    torch.save({"pytorch-lightning_version": "2", "a": torch.ones(3)}, tmp_path / "own.ckpt")
    read = strategy.load_checkpoint(tmp_path / "own.ckpt")
    assert torch.equal(read["a"], torch.ones(3))


class Opaque:
    """No tensor."""
