"""Two processes draw and learn what one does."""

import copy
import json

import lightning as L
import pytest
import torch
from tiny_training import entropy_callbacks, tiny_data, tiny_module

from aegpo.allocation import ProportionalAllocator
from aegpo.exploration import NoSteps
from aegpo.objectives import NFT


class Trace(L.Callback):
    """Writes what rank zero logged to a file."""

    def __init__(self, file):
        self.file, self.rows = file, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.rows.append({"prompts": batch.index.tolist(), **logged})

    def on_train_end(self, trainer, pl_module):
        parameters = torch.cat(
            [p.detach().flatten() for p in pl_module.policy.trainable_parameters()]
        )
        sums = pl_module.all_gather(parameters).reshape(trainer.world_size, -1)
        assert all(torch.equal(row, sums[0]) for row in sums)  # the ranks have not drifted apart
        if trainer.is_global_zero:
            norm = float(parameters.norm())
            self.file.write_text(json.dumps({"rows": self.rows, "norm": norm}))


def run(tmp_path, folder, devices, **settings):
    file = tmp_path / f"trace{devices}.json"
    trainer = L.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp_spawn" if devices > 1 else "auto",
        max_epochs=2,
        callbacks=[*entropy_callbacks(), Trace(file)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    trainer.fit(tiny_module(folder, lr=1e-2, **settings), tiny_data(tmp_path))
    return json.loads(file.read_text())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"allocator": ProportionalAllocator(images_per_prompt=3)},
        {"step_selector": NoSteps(), "objective": NFT(decay_rate=0.2)},
    ],
    ids=["median", "ragged", "nft"],
)
def test_two_ranks_follow_the_curve_of_one(tmp_path, tiny_sd3_folder, settings):
    one = run(tmp_path, tiny_sd3_folder, 1, **copy.deepcopy(settings))
    two = run(tmp_path, tiny_sd3_folder, 2, **copy.deepcopy(settings))
    assert len(one["rows"]) == len(two["rows"]) == 4
    for alone, shared in zip(one["rows"], two["rows"], strict=True):
        assert alone["prompts"] == shared["prompts"]
        assert alone["cost/evaluations"] == shared["cost/evaluations"]
        assert alone["rollout/images"] == shared["rollout/images"]
        for name in ("reward/mean", "reward/std", "update/gradient_norm", "sampler/seen_share"):
            assert alone[name] == pytest.approx(shared[name], rel=1e-3, abs=1e-6), name
    assert one["norm"] == pytest.approx(two["norm"], rel=1e-4)
    assert one["rows"][-1]["val/redness"] == pytest.approx(two["rows"][-1]["val/redness"], abs=1e-5)
