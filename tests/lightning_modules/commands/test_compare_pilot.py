"""`aegpo compare` in two stages: rates from a sweep on pilot seeds, then fresh seeds with the best.

Runs are faked as in `test_compare.py`; what the command line makes of the file is real.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_modules.arguments.messages import UserError
from lightning_modules.commands.compare import compare as compare_module
from lightning_modules.commands.compare.compare import compare, main
from lightning_modules.commands.compare.pilot import Pilot, changed
from lightning_modules.commands.compare.run import ComparedRun
from lightning_modules.commands.compare.settings import Comparison

RATE = "model.init_args.optimizer.init_args.lr"
BEST = {"slow": 1.5e-4, "fast": 1.0e-3, "fixed": 5.0}


class Ended:
    def __init__(self, status: int) -> None:
        self.status = status

    def poll(self) -> int:
        return self.status

    def kill(self) -> None: ...

    wait = poll


class Runner:
    """Writes a straight curve: the nearer the rate to the method's best, the higher it ends.

    Args:
        dies_at: Name of a run at which this program is interrupted.
        fails: A rate at which every run fails.
    """

    def __init__(self, dies_at: str = "", fails: float | None = None) -> None:
        self.dies_at, self.fails = dies_at, fails
        self.started: list[str] = []
        self.rates: dict[str, float] = {}

    def __call__(self, run: ComparedRun, resume: bool, alone: bool) -> Ended:
        self.started.append(run.name)
        if run.name == self.dies_at:
            raise KeyboardInterrupt
        config = yaml.safe_load((run.folder / "resolved.yaml").read_text())
        assert config["seed_everything"] == run.seed
        (budget,) = (
            callback["init_args"]["evaluations"]
            for callback in config["trainer"]["callbacks"]
            if callback["class_path"] == "callbacks.BudgetStop"
        )
        arguments = config["model"]["init_args"]
        rate = self.rates[run.name] = arguments["optimizer"]["init_args"]["lr"]
        if rate == self.fails:
            run.output.write_text("error: not a number\n")
            return Ended(1)
        with (run.folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("step", "cost/evaluations", "val/score"))
            for i in range(3):
                gain = 0.5 - abs(rate - BEST[arguments["name"]]) * 100
                writer.writerow((i, budget * i / 2, 0.4 + gain * i / 2 + run.seed / 1000))
        return Ended(0)


def resolve(arguments: list[list[str]]) -> list[dict[str, Any]]:
    configs = []
    for words in arguments:
        merged: dict[str, Any] = {}
        for file in words[1::2]:
            merged |= yaml.safe_load(Path(file).read_text()) or {}
        optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 5.0e-4}}
        logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {}}
        configs.append(
            {
                "trainer": {"logger": logger, "callbacks": []},
                "model": {"class_path": "a.B", "init_args": {**merged, "optimizer": optimizer}},
            }
        )
    return configs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text("name: fixed\n")
    return tmp_path


def settings(**changes: Any) -> Comparison:
    arguments: dict[str, Any] = {
        "methods": {"slow": [{"name": "slow"}], "fast": [{"name": "fast"}]},
        "base": "base.yaml",
        "budget": 100,
        "metric": "val/score",
        "reference": "slow",
        "seeds": [0, 1],
        "out": "out",
        "pilot": Pilot([100, 101], 40, {RATE: [1.0e-4, 3.0e-4, 9.0e-4]}),
    }
    return Comparison(**arguments | changes)


def test_each_method_is_run_on_fresh_seeds_with_the_rate_that_was_best_on_others(
    folder: Path,
) -> None:
    runner = Runner()
    assert compare(settings(), folder, resolve, runner)
    assert len(runner.started) == 2 * 2 * 3 + 2 * 2
    assert all("@" in name for name in runner.started[:12])  # all of the pilot comes first
    assert {name: runner.rates[name] for name in runner.started[12:]} == {
        "slow, seed 0": 1.0e-4,
        "fast, seed 0": 9.0e-4,
        "slow, seed 1": 1.0e-4,
        "fast, seed 1": 9.0e-4,
    }
    table = json.loads((folder / "out/table.json").read_text())
    found = table["pilot"]["fast"]
    assert found["chosen"] == {RATE: 9.0e-4}
    assert found["at_edge"] == [RATE]
    # .4 + .5 - 100 |rate - .001| + seed / 1000, by hand.
    assert found["tried"][2]["scores"] == {
        "100": pytest.approx(0.99),
        "101": pytest.approx(0.991),
    }
    # No seed of the pilot is in what is compared.
    assert [row["seeds"] for row in table["methods"]] == [[0, 1], [0, 1]]
    page = (folder / "out/table.md").read_text()
    assert "| fast | lr=0.0009 | 0.9905 | 0.9900, 0.9910 | chosen |" in page
    assert "| slow | lr=0.0003 | 0.9855 | 0.9850, 0.9860 |  |" in page
    assert "a wider sweep may do better: slow (lr); fast (lr)." in page


def test_what_was_run_is_not_run_again_whenever_it_was_interrupted(folder: Path) -> None:
    for dies_at in ("fast@lr=0.0003, seed 100", "slow, seed 1"):
        with pytest.raises(KeyboardInterrupt):
            compare(settings(), folder, resolve, Runner(dies_at=dies_at))
    last = Runner()
    assert compare(settings(), folder, resolve, last)
    assert last.started == ["slow, seed 1", "fast, seed 1"]
    whole = (folder / "out/table.json").read_bytes()
    assert compare(settings(out="again"), folder, resolve, Runner())
    assert (folder / "again/table.json").read_bytes() == whole
    # Another value is tried alone; where it wins, the method's own runs are new ones.
    wider = Runner()
    pilot = Pilot([100, 101], 40, {RATE: [1.0e-4, 1.6e-4, 3.0e-4, 9.0e-4]})
    assert compare(settings(pilot=pilot), folder, resolve, wider)
    assert len(wider.started) == 4 + 2
    assert wider.rates["slow, seed 0"] == 1.6e-4
    assert sorted(file.name for file in (folder / "out/superseded").iterdir()) == ["slow"]
    # A table of what is there starts nothing and finds the same choice.
    nothing = Runner()
    assert compare(settings(pilot=pilot, report_only=True), folder, resolve, nothing)
    assert nothing.started == []


def test_a_rate_that_fails_is_not_chosen_and_a_method_without_one_is_left_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runner = Runner(fails=9.0e-4)
    assert not compare(settings(), folder, resolve, runner)  # said, as any failed run
    assert runner.rates["fast, seed 0"] == 3.0e-4
    assert "| fast | lr=0.0009 | – | –, – |  |" in (folder / "out/table.md").read_text()
    only = Pilot([100], 40, {RATE: [1.0e-4]}, own={"fast": {RATE: [9.0e-4]}})
    assert not compare(settings(pilot=only, out="only"), folder, resolve, Runner(fails=9.0e-4))
    table = json.loads((folder / "only/table.json").read_text())
    assert [row["method"] for row in table["methods"]] == ["slow"]
    assert table["failures"]["fast"] == "no values of its pilot were measured with every seed"
    assert table["pilot"]["fast"]["chosen"] is None


def test_single_methods_have_sweeps_of_their_own_or_none(folder: Path) -> None:
    runner = Runner()
    pilot = Pilot(
        [100],
        40,
        {RATE: [1.0e-4, 3.0e-4]},
        own={"fast": {RATE: [5.0e-4], "model.init_args.name": ["fast", "slow"]}, "fixed": {}},
    )
    methods = {"slow": [{"name": "slow"}], "fast": [{"name": "fast"}], "fixed": []}
    assert compare(settings(methods=methods, pilot=pilot, seeds=[0]), folder, resolve, runner)
    assert runner.started[:4] == [
        "slow@lr=0.0001, seed 100",
        "slow@lr=0.0003, seed 100",
        "fast@lr=0.0005,name=fast, seed 100",
        "fast@lr=0.0005,name=slow, seed 100",
    ]
    assert runner.rates["fixed, seed 0"] == 5.0e-4  # its config's
    table = json.loads((folder / "out/table.json").read_text())
    assert table["pilot"]["fast"]["chosen"] == {RATE: 5.0e-4, "model.init_args.name": "slow"}
    assert "fixed" not in table["pilot"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": [101, 0]}, r"share \[101\]"),
        ({"pilot": Pilot([], 40, {RATE: [1.0]})}, "one or more different numbers"),
        ({"pilot": Pilot([9, 9], 40, {RATE: [1.0]})}, "one or more different numbers"),
        ({"pilot": Pilot([9], 0, {RATE: [1.0]})}, "at least 1"),
        ({"pilot": Pilot([9], 40, {RATE: []})}, "one or more different values"),
        ({"pilot": Pilot([9], 40, {RATE: [1.0, 1.0]})}, "one or more different values"),
        ({"pilot": Pilot([9], 40, {}, own={"quick": {}})}, r"\['quick'\]; the methods are slow"),
        ({"pilot": Pilot([9], 40, {"model.lr": [1.0]})}, "'slow' has no model.lr to sweep"),
        ({"methods": {"pilot": []}, "reference": "pilot"}, "cannot be a folder"),
    ],
)
def test_a_pilot_that_cannot_be_is_refused_before_anything_starts(
    folder: Path, changes: dict[str, Any], words: str
) -> None:
    runner = Runner()
    with pytest.raises(UserError, match=words):
        compare(settings(**changes), folder, resolve, runner)
    assert runner.started == []


def test_a_key_is_set_in_a_copy() -> None:
    config = {"a": {"b": 1}}
    assert changed(config, "m", {"a.b": 2}) == {"a": {"b": 2}}
    assert config == {"a": {"b": 1}}


def test_the_file_and_the_command_line_name_a_pilot(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived: list[Comparison] = []

    def note(settings: Comparison, folder: Path) -> bool:
        arrived.append(settings)
        return True

    monkeypatch.setattr(compare_module, "compare", note)
    (folder / "study.yaml").write_text(
        "methods: {slow: []}\nbase: base.yaml\nbudget: 100\nmetric: val/score\nreference: slow\n"
        f"pilot: {{seeds: [7, 8], budget: 40, sweep: {{{RATE}: [3e-4, 6.0e-4]}}}}\n"
    )
    main(["--config", "study.yaml", "--pilot.budget", "60"])
    assert arrived[0].pilot == Pilot([7, 8], 60, {RATE: [3.0e-4, 6.0e-4]})
