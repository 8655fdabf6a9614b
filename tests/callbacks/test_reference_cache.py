"""The reference's curves outlive a run; the next one reads those that are its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from probe_by_hand import TRAINER, batch, probe, read, shake
from safetensors.torch import save_file
from tiny_training import tiny_data, tiny_module, tiny_trainer

from aegpo.noise import KeyedNoise
from aegpo.planning.counts import Range, RunShape
from aegpo.rollout import RolloutWarmup
from aegpo.samplers import AdamsBashforth
from callbacks.entropy_probe import EntropyProbe


@pytest.fixture(scope="module")
def built(tiny_sd3_folder: Path) -> Any:
    module = tiny_module(tiny_sd3_folder)
    module.configure_model()
    return module


@pytest.fixture
def module(built: Any) -> Any:
    """The same weights for all tests of this file, its counts at zero."""
    drawn(built)
    return built


def drawn(module: Any) -> int:
    """Evaluations that went into references since this was last asked."""
    counts = module.policy.evaluations.counts
    number, counts["reference"] = counts["reference"], 0
    return int(number)


def test_a_later_run_reads_what_an_earlier_one_drew(module: Any, tmp_path: Path) -> None:
    first, second, none = (probe(reference_cache=where) for where in (str(tmp_path),) * 2 + (None,))
    read(first, module, (0, 4))
    assert drawn(module) == 2 * 5 and len(list(tmp_path.glob("*.safetensors"))) == 2
    before = module.policy.trainable_state_dict()
    before = {name: tensor.clone() for name, tensor in before.items()}
    shake(module)
    found = read(second, module, (4, 0, 7))
    assert drawn(module) == 5  # of the one that no run has met
    expected = read(none, module, (4, 0, 7))
    assert drawn(module) == 3 * 5
    module.policy.load_trainable_state_dict(before)
    for index in (0, 4):
        assert torch.equal(second.reference[index], first.reference[index])
    torch.testing.assert_close(found.delta, expected.delta, rtol=0, atol=1e-6)
    assert float(found.delta.min()) > 1e-4


def warm_up(module: Any, warmup: RolloutWarmup) -> dict[str, Any]:
    module.warmup = warmup
    return {}


CHANGES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "trajectories": lambda module: {"trajectories": 2},
    "noise": lambda module: setattr(module, "noise", KeyedNoise(77)) or {},
    "sampler": lambda module: (
        setattr(module, "warmup", RolloutWarmup(1, 5, AdamsBashforth())) or {}
    ),
    "steps": lambda module: setattr(module, "warmup", RolloutWarmup(1, 4)) or {},
    "guidance": lambda module: setattr(module.policy, "guidance_scale", 2.0) or {},
}


@pytest.mark.parametrize("what", [*CHANGES, "rows", "weights", "prompt"])
def test_another_run_s_curves_are_not_found(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    read(probe(reference_cache=str(tmp_path)), module, (3,))
    drawn(module)
    read(probe(reference_cache=str(tmp_path)), module, (3,))
    assert drawn(module) == 0
    for name in ("noise", "warmup"):
        monkeypatch.setattr(module, name, getattr(module, name))  # put back afterwards
    monkeypatch.setattr(module.policy, "guidance_scale", module.policy.guidance_scale)
    settings = CHANGES[what](module) if what in CHANGES else {}
    other = EntropyProbe(reference_cache=str(tmp_path)) if what == "rows" else None
    other = other or probe(reference_cache=str(tmp_path), **settings)
    rows = (3,)
    if what == "weights":
        weight = module.policy.denoiser.proj_out.weight
        monkeypatch.setattr(weight, "data", weight.data * 1.001)
    if what == "prompt":
        texts = batch(3)
        texts.prompts[0] = "a blue circle"
        other.on_train_batch_start(TRAINER, module, texts, 0)
    else:
        read(other, module, rows)
    assert drawn(module) > 0


@pytest.mark.parametrize("content", ["garbage", "other shape", "not a number"])
def test_what_is_no_curve_costs_a_line_and_is_drawn_again(
    module: Any, tmp_path: Path, content: str
) -> None:
    own = probe(reference_cache=str(tmp_path))
    read(own, module, (6,))
    drawn(module)
    (file,) = tmp_path.glob("*.safetensors")
    if content == "garbage":
        file.write_bytes(b"not safetensors")
    else:
        curve = torch.ones(3) if content == "other shape" else torch.full((5,), float("nan"))
        save_file({"entropy": curve}, file)
    again = probe(reference_cache=str(tmp_path))
    with pytest.warns(UserWarning, match="drawing again") as warned:
        read(again, module, (6,))
    assert len(warned) == 1 and drawn(module) == 5
    assert torch.equal(again.reference[6], own.reference[6])
    read(probe(reference_cache=str(tmp_path)), module, (6,))
    assert drawn(module) == 0  # the file is whole again


def test_a_folder_that_cannot_be_written_costs_a_line(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("aegpo.tensor_folder.save_file", full)
    with pytest.warns(UserWarning, match="could not be written"):
        read(probe(reference_cache=str(tmp_path)), module, (1,))
    assert drawn(module) == 5 and not list(tmp_path.iterdir())


def test_references_of_rollouts_are_found_by_the_steps_that_explored(
    tiny_sd3_folder: Path, tmp_path: Path
) -> None:
    counts, deltas = [], []
    for number in range(2):
        own = probe(source="rollouts", reference_cache=str(tmp_path / "cache"))
        folder = tmp_path / str(number)
        folder.mkdir()
        trained = tiny_module(tiny_sd3_folder)
        tiny_trainer(folder, [own]).fit(trained, tiny_data(folder))
        counts.append(trained.policy.evaluations.counts["reference"])
        deltas.append(torch.stack([delta for _, delta in own.last.values()]))
    assert counts[0] > 0 and counts[1] == 0
    assert torch.equal(*deltas)


def test_a_plan_says_that_references_may_cost_nothing(tmp_path: Path) -> None:
    run = RunShape(iterations=10, batch_size=4, num_steps=5, num_prompts=12)
    assert probe().planned_evaluations(run)["reference"] == Range(4 * 5, 12 * 5)
    kept = probe(reference_cache=str(tmp_path)).planned_evaluations(run)
    assert kept["reference"] == Range(0, 12 * 5)
    assert kept["probe"] == probe().planned_evaluations(run)["probe"]
