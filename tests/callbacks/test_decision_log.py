"""The decision log of a real miniature run gives back its decisions, also across a resumption."""

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from tiny_training import entropy_callbacks, tiny_data, tiny_module, tiny_trainer

from aegpo.allocation import MedianSplitAllocator
from aegpo.exploration import EntropyPeaks
from aegpo.study.decision_log import read_decisions
from aegpo.study.decision_replay import compare_sizes, compare_steps
from callbacks.decision_log import DecisionLog
from callbacks.rollout_checkpoint import RolloutCheckpoint
from lightning_modules.commands import replay


def train(folder, pipeline, max_epochs, ckpt_path=None, logged=True):
    checkpoint = RolloutCheckpoint(dirpath=str(folder / "checkpoints"))
    callbacks = [*entropy_callbacks(), DecisionLog(), checkpoint]
    settings = {"max_epochs": max_epochs, "enable_checkpointing": True}
    logger = CSVLogger(folder, name="", version="") if logged else False
    trainer = tiny_trainer(folder, callbacks, logger=logger, **settings)
    module, data = tiny_module(pipeline, lr=1e-2), tiny_data(folder)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    return module


def test_a_run_is_replayed_exactly_and_a_resumed_one_logs_the_same(
    tmp_path, tiny_sd3_folder, capsys, monkeypatch
):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for folder in (whole, halves):
        folder.mkdir()
    module = train(whole, tiny_sd3_folder, 2)
    log = whole / "decisions.jsonl"
    decisions = read_decisions(log)
    assert [decision.iteration for decision in decisions] == [0, 1, 2, 3]
    last = decisions[-1]
    assert torch.equal(last.group_sizes, module.last.group_sizes)
    assert torch.equal(last.index, module.last.batch.index)
    assert torch.equal(last.entropy.curve, module.entropy.curve)
    assert torch.equal(last.entropy.delta, module.entropy.delta)
    assert len(set(last.group_sizes.tolist())) == 2  # the reading did decide something
    # Before the first reading each of the twelve prompts has the same chance.
    assert decisions[0].probabilities.tolist() == pytest.approx([1 / 12] * 4)
    assert compare_steps(decisions, EntropyPeaks(top_k=2)).same == 1.0
    assert compare_sizes(decisions, MedianSplitAllocator(2, 4)).same == 1.0

    train(halves, tiny_sd3_folder, 1)
    cut = halves / "decisions.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    cut.write_text(cut.read_text() + lines[2] + lines[3][:50])  # killed after the checkpoint
    before = cut.read_bytes()

    def full(*_):
        assert cut.read_bytes() == before
        raise OSError("no space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="no space"):
        patched.setattr("aegpo.utilities.files.os.replace", full)
        train(halves, tiny_sd3_folder, 2, ckpt_path="last")
    assert cut.read_bytes() == before
    train(halves, tiny_sd3_folder, 2, ckpt_path="last")
    assert cut.read_text() == log.read_text()

    capsys.readouterr()
    replay.main([str(log), "--allocator", "MedianSplitAllocator", "--allocator.low", "2"])
    assert capsys.readouterr().out.startswith("4 iterations\nimages: ")
    replay.main([str(log), "--step_selector", "FixedSteps", "--step_selector.steps", "[0,1]"])
    printed = capsys.readouterr().out
    assert "replayed   100%  100%    0%    0%    0%" in printed
    for arguments, words in (
        ([str(log)], "give --allocator or --step_selector"),
        (["none.jsonl", "--step_selector", "AllSteps"], "there is no file none.jsonl"),
    ):
        with pytest.raises(SystemExit) as stopped:
            replay.main(arguments)
        assert stopped.value.code == 2
        assert words in capsys.readouterr().err


def test_without_a_log_folder_nothing_is_written(tmp_path, tiny_sd3_folder):
    (tmp_path / "decisions.jsonl").write_text("mine")
    with pytest.warns(UserWarning, match=r"without a trainer.logger there is no log folder"):
        train(tmp_path, tiny_sd3_folder, 1, logged=False)
    assert (tmp_path / "decisions.jsonl").read_text() == "mine"
