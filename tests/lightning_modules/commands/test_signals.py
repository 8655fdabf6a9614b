"""`aegpo signals` on the tiny pipeline, with and without checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import tiny_data, tiny_module, tiny_trainer

from aegpo.exploration import NoSteps
from aegpo.noise import KeyedNoise
from aegpo.objectives import NFT
from aegpo.samplers import AdamsBashforth
from aegpo.sde import ODE
from lightning_modules.commands.signals import choose_prompts, signals

SMALL: dict[str, Any] = {"prompts": 4, "images": 2, "trajectories": 2, "rows": None, "top_k": None}


def measured(
    tmp_path: Path, folder: Path, name: str, agreement: bool = False, **checkpoints: str | None
) -> dict:
    """Run the command; the JSON file that it wrote."""
    out = tmp_path / name
    module = tiny_module(folder, num_steps=4, seed=0, sampler=AdamsBashforth())
    data = tiny_data(tmp_path)
    settings = SMALL | {"agreement": agreement}
    signals(tiny_trainer(tmp_path, []), module, data, **checkpoints, **settings, out=str(out))
    return json.loads((out / "signals.json").read_text())


def test_the_base_then_one_checkpoint_then_two(
    tiny_sd3_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = measured(tmp_path, tiny_sd3_folder, "base")
    printed = capsys.readouterr().out
    assert base["prompts"] is None and "Give --ckpt_path to see it" in printed
    assert base["by_prompt"]["category"] == ["warm", "warm", "cold", "cold"]
    assert base["settings"]["top-K"] == 2  # EntropyPeaks' own
    assert base["settings"]["steps without noise"] == "AdamsBashforth()"
    assert all(len(row["steps"]) == 2 for row in base["steps"]["rows"])
    assert f"{sum(base['evaluations'].values()):,} model evaluations" in printed

    trainer = tiny_trainer(tmp_path, [], max_epochs=1, limit_val_batches=0)
    module = tiny_module(tiny_sd3_folder, num_steps=4, seed=0, lr=0.03)
    trainer.fit(module, datamodule=tiny_data(tmp_path))
    checkpoint = str(tmp_path / "last.ckpt")
    trainer.save_checkpoint(checkpoint)

    one = measured(tmp_path, tiny_sd3_folder, "one", ckpt_path=checkpoint)
    assert any(one["by_prompt"]["reward_gained"])
    assert all(min(entry["values"]) > 0 for entry in one["by_prompt"]["delta"])
    # What this command spends is counted from 0, not from where the checkpoint's training ended.
    assert one["evaluations"]["probe"] == base["evaluations"]["probe"] == 5 * 4 * 2 * 4
    assert one["evaluations"]["update"] == 0

    found = measured(tmp_path, tiny_sd3_folder, "agreement", agreement=True, ckpt_path=checkpoint)
    assert found["evaluations"] == one["evaluations"] | {"update": 3 * 4 * 2 * 3}
    assert found["steps"]["rows"][0]["tokens"] == "gradient agreement"
    assert all(-1 <= value <= 1 for value in found["steps"]["rows"][0]["entropy"][:-1])
    assert found["steps"]["rows"][1:] == one["steps"]["rows"]

    two = measured(tmp_path, tiny_sd3_folder, "two", ckpt_path=checkpoint, ckpt_before=checkpoint)
    assert two["by_prompt"]["reward_gained"] == [0.0] * 4
    assert (
        two["by_prompt"]["delta_before"] == two["by_prompt"]["delta"] == one["by_prompt"]["delta"]
    )
    page = (tmp_path / "two/signals.md").read_text()
    assert "| reward spread |" in page
    assert "| gained |" not in page  # nothing was gained: no ranks, no column


def test_a_config_that_draws_no_noise_is_measured_with_some(
    tiny_sd3_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {"sde": ODE(), "step_selector": NoSteps(), "objective": NFT(times_per_image=2)}
    module = tiny_module(tiny_sd3_folder, num_steps=3, seed=0, **parts)
    given = SMALL | {"out": str(tmp_path / "out")}
    signals(tiny_trainer(tmp_path, []), module, tiny_data(tmp_path), **given)
    found = json.loads((tmp_path / "out/signals.json").read_text())
    assert all(spread > 0 for spread in found["steps"]["spread"][:-1])
    told = "steps with noise: FlowSDE at eta 0.7; the config's ODE draws none"
    assert told in " ".join(capsys.readouterr().out.split())


def test_wrong_requests_are_refused_in_words(tiny_sd3_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give --ckpt_path too"):
        measured(tmp_path, tiny_sd3_folder, "out", ckpt_before="a.ckpt")
    empty = tmp_path / "empty.ckpt"
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2"}, empty)
    with pytest.raises(ValueError, match=r"empty\.ckpt holds no weights of a policy"):
        measured(tmp_path, tiny_sd3_folder, "out", ckpt_path="b.ckpt", ckpt_before=str(empty))
    for taken in ("empty.ckpt", "empty.ckpt/deep"):
        with pytest.raises(ValueError, match="is a file; give"):
            measured(tmp_path, tiny_sd3_folder, taken)
    module = tiny_module(tiny_sd3_folder)
    del module.sde
    with pytest.raises(ValueError, match="AEGPOModule lacks sde"):
        signals(tiny_trainer(tmp_path, []), module, None, **SMALL, out="out")
    assert not (tmp_path / "out").exists()


def test_prompts_are_drawn_evenly_and_repeatably() -> None:
    categories = ["a"] * 50 + ["b"] * 4 + ["c"]
    rows = choose_prompts(categories, 11, KeyedNoise(0))
    assert rows == sorted(set(rows)) == choose_prompts(categories, 11, KeyedNoise(0))
    assert [sum(categories[row] == name for row in rows) for name in "abc"] == [6, 4, 1]
    assert choose_prompts(categories, 11, KeyedNoise(1)) != rows
    assert choose_prompts(categories, 100, KeyedNoise(0)) == list(range(55))
