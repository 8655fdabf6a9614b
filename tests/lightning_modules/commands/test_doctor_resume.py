"""`aegpo doctor --resume`: real processes, killed, equal those that were not; and what if not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_runs import start_forked
from killed_runs import resolved, write_config

from aegpo.utilities.files import set_aside
from lightning_modules.arguments.messages import UserError
from lightning_modules.commands.doctor import environment, resume
from lightning_modules.commands.doctor.equality import checkpoints_differ, first_difference
from lightning_modules.commands.doctor.killed_run import (
    KilledRun,
    Place,
    places,
    read_notes,
    short_config,
)
from lightning_modules.commands.doctor.resume import draw_moments, prove, table


def short(folder: Path, pipeline: Path, iterations: int = 6, **model: Any) -> dict[str, Any]:
    sys.path.append(str(folder))
    return short_config(
        resolved("--config", str(write_config(folder, pipeline, **model))), iterations, None
    )


def begins(notes: Path) -> list[int]:
    """Where each rank began to train."""
    return [n["began"] for lines in read_notes(notes).values() for n in lines if "began" in n]


def place(phase: str, number: int = 1, iteration: int = 3, **facts: Any) -> Place:
    return Place(0, iteration, phase, number, facts)


def test_a_run_that_is_killed_twice_equals_one_that_is_not(
    folder: Path, tiny_sd3_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In an update and in a checkpoint the next test kills.
    monkeypatch.setattr(resume, "PHASES", ("rollout", "validation"))
    config = short(folder, tiny_sd3_folder, iterations=4)
    rows = prove(folder / "proof", config, 2, seed=1, start_process=start_forked)
    assert [row.difference for row in rows] == [None] * 2, table(rows)
    for phase in resume.PHASES:
        assert any(phase in row.moment for row in rows), table(rows)
    assert all(row.began in (2, 4) for row in rows)  # from a checkpoint, never from the start
    assert not (folder / "runs").exists()  # the user's own


def test_two_ranks_are_killed_in_the_middle_of_a_checkpoint(
    folder: Path, tiny_sd3_folder: Path
) -> None:
    nft = {
        "objective": {"class_path": "aegpo.objectives.NFT", "init_args": {"decay_rate": 0.2}},
        "step_selector": {"class_path": "aegpo.exploration.NoSteps"},
    }
    config = short(folder, tiny_sd3_folder, iterations=4, **nft)
    config["trainer"] |= {"devices": 2, "strategy": "ddp_fork"}
    whole = KilledRun(folder / "whole", config, start_process=start_forked)
    killed = KilledRun(folder / "killed", config, start_process=start_forked)
    reference = read_notes(whole.live())
    assert sorted(reference) == [0, 1]
    passed = list(places(reference))
    writes = [one for one in passed if one.iteration == 4 and "bytes" in one.facts]
    middle = writes[len(writes) // 2]
    early = next(one for one in passed if (one.rank, one.iteration, one.phase) == (1, 1, "update"))
    killed.live(early)
    assert not list((folder / "killed").rglob("*.ckpt"))  # there is none to go on from yet
    assert begins(killed.live(middle)) == [0, 0]
    last = folder / "killed/checkpoints/last.ckpt"
    (partial,) = set_aside(last.with_name(".last.ckpt"), "partial")  # that it was writing
    assert 0 < partial.stat().st_size < last.stat().st_size
    assert torch.load(last, weights_only=True)["aegpo"]["iteration"] == 2  # the old one, whole
    assert begins(killed.live()) == [2, 2]
    assert checkpoints_differ(whole.folder, killed.folder) is None
    assert not set_aside(last.with_name(".last.ckpt"), "partial")


def test_a_state_that_no_checkpoint_has_is_found_and_named(
    folder: Path,
    tiny_sd3_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reward = {"class_path": "my_module.Redness", "init_args": {"forgets": True}}
    config = short(folder, tiny_sd3_folder, iterations=4, reward=reward)
    monkeypatch.setattr(resume, "resolve_in_subprocess", lambda words: [config])
    monkeypatch.setattr(resume, "short_config", lambda config, *_: config)
    start = lambda *args, **settings: prove(*args, **settings, start_process=start_forked)  # noqa: E731
    monkeypatch.setattr(resume, "prove", start)
    with pytest.raises(SystemExit) as stopped:
        environment.main(["--resume", "--kills", "1", "--config", "x.yaml"])
    assert stopped.value.code == 1
    printed = capsys.readouterr().out
    assert "of iteration 3 is" in printed and "NOT equal; both runs are in" in printed


def test_a_run_that_ends_otherwise_is_one_line(
    folder: Path, tiny_sd3_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = short(folder, tiny_sd3_folder)
    run = KilledRun(folder / "run", config, start_process=_Refused)
    with pytest.raises(UserError, match="status 2 in place of 0: error: no such thing"):
        run.live()
    hung = KilledRun(folder / "hung", config, patience=0.3, start_process=_Silent)
    with pytest.raises(UserError, match="no sign of life for 0 s"):
        hung.live()
    for words in (["--kills", "0"], ["--ckpt_path", "last"], ["--ckpt_path=last"]):
        with pytest.raises(SystemExit) as stopped:
            environment.main(["--resume", *words])
        assert stopped.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 3


class _Refused:
    pid = 2**22 + 1  # no process has it

    def __init__(self, arguments: list[str], output: Path) -> None:
        output.write_text("a warning\nerror: no such thing\n")

    def poll(self) -> int | None:
        return 2

    def wait(self) -> int:
        return 2


class _Silent(_Refused):
    def poll(self) -> None:
        return None


def test_moments_are_of_every_phase_and_after_the_first_checkpoint() -> None:
    before = [place("rollout", 1, 0), place("checkpoint", 1, 1, stage="written, not yet renamed")]
    first = place("checkpoint", 2, 1, file="last.ckpt", stage="renamed")
    after = [place(phase, n) for phase in (*resume.PHASES, "log") for n in range(1, 9)]
    end = [place("checkpoint", 9, 5, stage="renamed"), place("log", 1, 6)]  # nothing is left to do
    drawn = draw_moments([*before, first, *after, *end], 12, seed=3)
    assert drawn == draw_moments([*before, first, *after, *end], 12, seed=3)
    assert drawn != draw_moments([*before, first, *after, *end], 12, seed=4)
    assert not set(map(repr, drawn)) & set(map(repr, [*before, *end]))
    assert len(set(map(repr, drawn))) == 12
    assert {one.phase for one in drawn} >= set(resume.PHASES)
    order = [[first, *after].index(one) for one in drawn]
    assert order == sorted(order)
    with pytest.raises(UserError, match="too few for 3 kills; raise --iterations"):
        draw_moments([*before, first], 3, seed=0)


def test_what_a_life_logged_is_compared_to_the_bit() -> None:
    whole = [((1, "a"), (0.5).hex()), ((2, "a"), (0.25).hex())]
    assert first_difference(whole, [((2, "a"), (0.25).hex())]) is None
    other = (0.25 + 2**-54).hex()
    assert "is 0.25000000000000006, not 0.25" in str(first_difference(whole, [((2, "a"), other)]))
    assert "which the whole run has not" in str(first_difference(whole, [((2, "b"), other)]))
    assert "less often" in str(first_difference(whole, [((1, "a"), (0.5).hex())] * 2))


def test_the_short_run_keeps_to_its_own_folder(folder: Path, tiny_sd3_folder: Path) -> None:
    file = write_config(folder, tiny_sd3_folder)
    sys.path.append(str(folder))
    config = resolved("--config", str(file))
    config["trainer"]["without_callbacks"] = ["RolloutCheckpoint", "Canary"]
    made = short_config(config, 5, 2)["trainer"]
    names = [one["class_path"].rpartition(".")[2] for one in made["callbacks"]]
    assert "Canary" not in names and names.count("RolloutCheckpoint") == 1
    assert made["without_callbacks"] is None  # it would take the new one away as well
    assert (made["max_epochs"], made["devices"], made["strategy"]) == (3, 2, "ddp")
    assert "runs" not in str(made["callbacks"]) + str(made["logger"])
