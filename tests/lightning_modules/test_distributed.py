"""Two processes draw and learn what one does."""

import copy
import json
import os
from functools import partial

import lightning as L
import pytest
import torch
from tiny_training import Redness, entropy_callbacks, tiny_data, tiny_module, tiny_policy

from aegpo.advantages import PerReward
from aegpo.allocation import MedianSplitAllocator, ProportionalAllocator, UniformAllocator
from aegpo.exploration import AgreementSteps, EntropyPeaks, NoSteps
from aegpo.objectives import AWM, NFT, DepthCredit, LevelAgreement
from aegpo.rewards.jpeg import JpegCompressibility
from aegpo.rewards.weighted_sum import WeightedSum
from aegpo.selection import ByAdvantage, Extremes, Previews
from callbacks.canary import Canary
from callbacks.cost_logger import CostLogger
from callbacks.curve_logger import CurveLogger
from callbacks.hacking_alarm import HackingAlarm
from callbacks.reward_spread import RewardSpread
from callbacks.step_spread import TreeSpread, TrialSpread

# What the rewards of some runs cannot read is what they are about.
pytestmark = pytest.mark.filterwarnings("ignore:reward 'unreadable' has")


class Unreadable(Redness):
    """Scores no triangle."""

    name = "unreadable"

    def __call__(self, images, prompts, metadata):
        scores = super().__call__(images, prompts, metadata)
        lost = torch.tensor(["triangle" in prompt for prompt in prompts], dtype=torch.bool)
        return scores.masked_fill(lost, float("nan"))


class Trace(L.Callback):
    """Writes what rank zero logged to a file."""

    def __init__(self, file):
        self.file, self.rows = file, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        explored = pl_module.last.schedule.stochastic[:1].any(0).nonzero().flatten().tolist()
        reading = pl_module.entropy
        published = {}
        if reading is not None:
            published["curve"] = reading.curve.tolist()
            published["delta"] = None if reading.delta is None else reading.delta.tolist()
        self.rows.append(
            {"prompts": batch.index.tolist(), "steps": explored, **published, **logged}
        )

    def on_train_end(self, trainer, pl_module):
        parameters = torch.cat(
            [p.detach().flatten() for p in pl_module.policy.trainable_parameters()]
        )
        sums = pl_module.all_gather(parameters).reshape(trainer.world_size, -1)
        assert all(torch.equal(row, sums[0]) for row in sums)  # the ranks have not drifted apart
        if trainer.is_global_zero:
            tensors = pl_module.policy.trainable_state_dict()
            tensors = {name: value.detach().tolist() for name, value in tensors.items()}
            self.file.write_text(json.dumps({"rows": self.rows, "tensors": tensors}))


def run(tmp_path, folder, devices, callbacks, settings, max_epochs=2, data=None):
    """Train as one of some ranks, and read what rank zero wrote."""
    own = tmp_path / f"rank{os.environ.get('RANK', '')}"  # ranks do not write while others read
    own.mkdir(exist_ok=True)
    file = tmp_path / f"trace{devices}.json"
    trainer = L.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=max_epochs,
        callbacks=[*callbacks, Trace(file)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    if buckets := settings.pop("buckets", None):
        settings["policy"] = partial(tiny_policy(folder), resolution=buckets)
    trainer.fit(tiny_module(folder, lr=1e-2, **settings), tiny_data(own, **(data or {})))
    return json.loads(file.read_text()) if trainer.is_global_zero else None


def on_both(pair, *arguments):
    """The same training on one process and on two ranks."""
    tmp_path, folder, *others = copy.deepcopy(arguments)
    return run(tmp_path, folder, 1, *others), pair.run(run, tmp_path, folder, 2, *arguments[2:])[0]


ALL_RANKS = (
    *("reward/mean", "reward/std", "reward/part/jpeg_compressibility", "update/gradient_norm"),
    *("steps/agreement_0", "steps/agreement_1", "steps/share_0", "levels/agreement_0"),
    *("previews/correlation_1", "previews/step", "rollout/previews"),
    *("update/loss", "update/transitions", "ratio/mean", "ratio/std", "ratio/clip_fraction"),
    *("rollout/height", "rollout/width"),
)

WATCHED = (
    *("canary/edge_density", "canary/color_entropy", "canary/group_diversity"),
    *("canary/unreadable", "canary/missing", "rollout/stochastic_share"),
    *("alarm/raised", "alarm/group_diversity", "alarm/velocity_norm", "alarm/latent_norm"),
)


def compare(one, two, names=ALL_RANKS):
    """The same prompts, costs, steps and curves; what is logged is logged of all ranks."""
    assert len(one["rows"]) == len(two["rows"]) >= 4
    for alone, shared in zip(one["rows"], two["rows"], strict=True):
        for name in ("prompts", "steps", "cost/evaluations", "rollout/images"):
            assert alone[name] == shared[name], name
        for name in (*names, "curve", "delta"):
            expected = alone.get(name)
            if expected is None:
                assert shared.get(name) is None
                continue
            torch.testing.assert_close(
                torch.tensor(shared[name]), torch.tensor(expected), rtol=1e-3, atol=1e-6, msg=name
            )
    assert one["tensors"].keys() == two["tensors"].keys()
    for name, values in one["tensors"].items():
        expected = torch.tensor(values)
        bound = 1e-3 * float(expected.abs().max())
        torch.testing.assert_close(
            torch.tensor(two["tensors"][name]), expected, rtol=0.0, atol=max(bound, 1e-8), msg=name
        )


@pytest.mark.parametrize(
    ("probe", "settings", "epochs"),
    [
        (
            {},
            {
                "allocator": ProportionalAllocator(images_per_prompt=3),
                "reward": WeightedSum([Redness(), JpegCompressibility()]),
                "evaluation_rewards": [Redness()],
                "advantage": PerReward(normalize_batch=True),
                "overlap_chunks": 2,
                "selection": Extremes(keep=3),
            },
            3,  # six iterations
        ),
        ({"source": "rollouts"}, {}, 2),
        (
            {},
            {
                "step_selector": NoSteps(),
                "objective": NFT(
                    decay_rate=0.2, levels="stratified", level_range=(0.0, 0.6), anchor_coeff=0.5
                ),
                "selection": ByAdvantage(keep=2),  # its weights are of both ranks' images
            },
            3,
        ),
        (
            {},
            {
                "step_selector": NoSteps(),
                "objective": AWM(times_per_image=2, levels=LevelAgreement(parts=2, prior=0.5)),
            },
            2,
        ),
        ({}, {"step_selector": AgreementSteps(top_k=2, explore=0.3, prior=0.5)}, 3),
        (
            {},
            {
                "step_selector": NoSteps(),
                "objective": NFT(),
                "allocator": MedianSplitAllocator(3, 5),
                "selection": Extremes(keep=2),
                "previews": Previews(bound=1e-6, every_n_iterations=3),
            },
            2,
        ),
        ({}, {"buckets": [(16, 16), (24, 16), (16, 32)]}, 2),
    ],
    ids=[
        *("ragged, rewards by part", "entropy of the rollouts", "nft", "awm by agreement"),
        *("steps by agreement", "previews", "buckets"),
    ],
)
def test_two_ranks_follow_the_curve_of_one(
    pair, tmp_path, tiny_sd3_folder, probe, settings, epochs
):
    callbacks = [*entropy_callbacks(**probe), Canary([Unreadable()]), CurveLogger()]
    callbacks.append(HackingAlarm(norm_drift=0.01, window=1))
    one, two = on_both(pair, tmp_path, tiny_sd3_folder, callbacks, settings, epochs)
    compare(one, two, (*ALL_RANKS, *WATCHED, "sampler/seen_share", "rollout/images_trained"))
    assert any(row["canary/missing"] > 0 for row in one["rows"])
    assert one["rows"][-1]["update/transitions"] > 0
    assert one["rows"][-1]["val/redness"] == pytest.approx(two["rows"][-1]["val/redness"], abs=1e-5)


@pytest.mark.parametrize(
    ("callbacks", "settings"),
    [
        # Depths are normalized per prompt on trees of 4 and of 8 images, so ranks differ in shape.
        (
            [RewardSpread(), TreeSpread(), CostLogger()],
            {
                "credit": DepthCredit(beta=1.0),
                "step_selector": EntropyPeaks(top_k=2, branching=2),
                "allocator": MedianSplitAllocator(low=4, high=8),
                "split_scale": 4.0,
            },
        ),
        # Two ranks measure three prompts, at iterations 0 and 2.
        (
            [RewardSpread(), TrialSpread(2, prompts=3, every_n_iterations=2), CostLogger()],
            {"step_selector": EntropyPeaks(top_k=2), "allocator": MedianSplitAllocator(2, 4)},
        ),
    ],
    ids=["trees", "chains"],
)
def test_credit_and_spreads_do_not_notice_the_ranks(
    pair, tmp_path, tiny_sd3_folder, callbacks, settings
):
    one, two = on_both(pair, tmp_path, tiny_sd3_folder, callbacks, settings)
    compare(one, two)
    # What the first visits left behind decides the last iteration.
    assert len(set(one["rows"][-1]["delta"])) > 1 and one["rows"][-1]["curve"] is not None


def test_a_rank_may_have_no_prompt_and_no_held_out_image(pair, tmp_path, tiny_sd3_folder):
    callbacks = [*entropy_callbacks(), Canary(), TrialSpread(2, prompts=1)]
    settings = {"allocator": UniformAllocator(3), "step_selector": EntropyPeaks(top_k=2)}
    data = {"batch_size": 1, "val_batch_size": 1, "val_images": 1}
    one, two = on_both(pair, tmp_path, tiny_sd3_folder, callbacks, settings, 2, data)
    compare(one, two)
    assert one["rows"][-1]["val/redness"] == pytest.approx(two["rows"][-1]["val/redness"], abs=1e-5)
