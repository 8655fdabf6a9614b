"""`aegpo compare` with faked runs: what is run, what is not run again, the same table after all.

`test_compare_for_real.py` has the same with real trainings.
"""

from __future__ import annotations

import csv
import fcntl
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from lightning_modules.arguments.messages import UserError
from lightning_modules.commands.compare import compare as compare_module
from lightning_modules.commands.compare import run as compared_run
from lightning_modules.commands.compare.compare import compare, main
from lightning_modules.commands.compare.measure import run_all
from lightning_modules.commands.compare.run import ComparedRun, compared_config, start
from lightning_modules.commands.compare.settings import Comparison
from lightning_modules.commands.run_logs import read_scalars

ROOT = Path(__file__).parents[3]
TENSORBOARD = "lightning.pytorch.loggers.TensorBoardLogger"


def resolved(gain: float, **trainer: Any) -> dict[str, Any]:
    return {
        "seed_everything": 0,
        "trainer": {
            "logger": {"class_path": TENSORBOARD, "init_args": {"save_dir": "runs"}},
            "callbacks": [
                {"class_path": "callbacks.CostLogger"},
                {"class_path": "callbacks.RolloutProgressBar", "init_args": {"average_over": 5}},
                {"class_path": "callbacks.RolloutCheckpoint", "init_args": {"dirpath": "x"}},
            ],
            **trainer,
        },
        "model": {"class_path": "a.Model", "init_args": {"gain": gain, "seed": None}},
        "data": {"class_path": "a.Data"},
        "ckpt_path": None,
    }


def resolve(arguments: list[list[str]]) -> list[dict[str, Any]]:
    """The last file that names a gain decides, as in a merge."""
    configs = []
    for words in arguments:
        assert set(words[::2]) == {"--config"}
        contents = [yaml.safe_load(Path(file).read_text()) for file in words[1::2]]
        configs.append(resolved([content["gain"] for content in contents if content][-1]))
    return configs


class Ended:
    """A process that has ended with a status."""

    def __init__(self, status: int = 0) -> None:
        self.status = status

    def poll(self) -> int:
        return self.status

    def kill(self) -> None:
        raise AssertionError("it had ended")

    wait = poll


class Runner:
    """Writes the log of a run with score .4 + gain × evaluations (+ a little for the seed).

    Args:
        dies_at: Name of a run that is killed, with this program, after half of its iterations.
        fails: Name of a run that fails.
        ends_early: Name of a run that ends before its budget.
        missing: Iterations of a run, by its name, at which no image could be scored.
    """

    def __init__(
        self,
        dies_at: str = "",
        fails: str = "",
        ends_early: str = "",
        missing: dict[str, tuple[int, ...]] | None = None,
    ) -> None:
        self.dies_at, self.fails, self.ends_early = dies_at, fails, ends_early
        self.missing = missing or {}
        self.started: list[tuple[str, bool]] = []

    def __call__(self, run: ComparedRun, resume: bool, alone: bool) -> Ended:
        self.started.append((run.name, resume))
        config = yaml.safe_load((run.folder / "resolved.yaml").read_text())
        assert config["seed_everything"] == run.seed
        assert (run.folder / "checkpoints/last.ckpt").is_file() == resume
        if run.name == self.fails:
            run.output.write_text("loading\nerror: the reward is nonsense\nbye\n")
            return Ended(1)
        gain = config["model"]["init_args"]["gain"]
        first, last = (
            (3 if resume else 0),
            (3 if run.name in (self.dies_at, self.ends_early) else 6),
        )
        rows = [
            {"step": i, "cost/evaluations": 20 * i if i else "", "val/score": ""}
            for i in range(first, last)
        ]
        rows += [
            {"step": i, "val/score": 0.4 + gain * 20 * i + run.seed / 100}
            for i in range(first, last)
        ]
        for row in rows[last - first :]:
            if row["step"] in self.missing.get(run.name, ()):
                row["val/score"] = math.nan
        exists = (run.folder / "metrics.csv").is_file()
        assert exists == resume  # a new start finds nothing of an old one
        with (run.folder / "metrics.csv").open("a", newline="") as file:
            writer = csv.DictWriter(file, ["step", "cost/evaluations", "val/score"])
            if not exists:
                writer.writeheader()
            writer.writerows(rows)
        if run.name == self.dies_at:
            (run.folder / "checkpoints").mkdir()
            (run.folder / "checkpoints/last.ckpt").touch()
            raise KeyboardInterrupt
        return Ended()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text("gain: 1.0e-3\n")
    (tmp_path / "better.yaml").write_text("gain: 4.0e-3\n")
    return tmp_path


def settings(**changes: Any) -> Comparison:
    arguments: dict[str, Any] = {
        "methods": {"base": [], "better": ["better.yaml"]},
        "base": "base.yaml",
        "budget": 100,
        "metric": "val/score",
        "reference": "base",
        "seeds": [0, 1],
        "out": "out",
    }
    return Comparison(**arguments | changes)


def report(folder: Path) -> dict[str, bytes]:
    names = ("table.md", "table.csv", "table.json", "curves.csv", "curves.png", "differences.png")
    return {name: (folder / "out" / name).read_bytes() for name in names}


def test_the_table_of_two_methods_and_two_seeds_by_hand(folder: Path) -> None:
    runner = Runner()
    assert compare(settings(), folder, resolve, runner)
    # A seed of every method before the next seed.
    assert runner.started == [
        (name, False)
        for name in ("base, seed 0", "better, seed 0", "base, seed 1", "better, seed 1")
    ]
    table = json.loads((folder / "out/table.json").read_text())
    base, better = table["methods"]
    # At 100 evaluations .4 + .1 and .4 + .4, and .01 more for seed 1.
    assert base["final"] == pytest.approx([0.5, 0.51])
    assert better["final"] == pytest.approx([0.8, 0.81])
    assert table["target"] == pytest.approx(0.505)
    # From .4 and .41 to .505 by .004 an evaluation.
    assert better["evaluations_to_target"] == pytest.approx([26.25, 23.75])
    # The reference: seed 0 not within 100, which counts as 100; seed 1 after 95.
    assert base["evaluations_to_target"] == [None, pytest.approx(95)]
    assert better["ratio"]["value"] == pytest.approx((26.25 / 100 + 23.75 / 95) / 2)
    assert better["difference"]["value"] == pytest.approx(0.3)
    markdown = (folder / "out/table.md").read_text()
    assert (
        "| base | 2 | 0.5050 (0.5000 to 0.5100) | – | 0.4550 | – | > 100 | 1 of 2 | – |" in markdown
    )
    assert (
        "| better | 2 | 0.8050 (0.8000 to 0.8100) | +0.3000 (+0.3000 to +0.3000) "
        "| 0.6050 | +0.1500 (+0.1500 to +0.1500) | 25 | 2 of 2 | 0.256 (0.250 to 0.262) |"
    ) in markdown
    # Two seeds have a range and no interval: the page and the file for programs say so.
    assert "of two seeds it holds the true median in 50 % of cases" in markdown
    assert "95 % bootstrap" not in markdown
    with (folder / "out/table.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["difference_low_high"], second["difference_low_high"]) == ("", "range of seeds")
    assert better["difference"]["is_range"] is True
    with (folder / "out/curves.csv").open() as file:
        points = list(csv.DictReader(file))
    assert len(points) == 2 * 2 * 6
    assert (folder / "out/curves.png").read_bytes().startswith(b"\x89PNG")


def test_finished_runs_are_not_run_again(folder: Path) -> None:
    compare(settings(), folder, resolve, Runner())
    before = report(folder)
    again = Runner()
    assert compare(settings(), folder, resolve, again)
    assert again.started == []
    assert report(folder) == before
    # Another seed and another method are the only news.
    third = {"methods": {"base": [], "better": ["better.yaml"], "third": [{"gain": 0.002}]}}
    compare(settings(seeds=[0, 1, 2], **third), folder, resolve, again)
    names = {"base, seed 2", "better, seed 2", "third, seed 0", "third, seed 1", "third, seed 2"}
    assert {name for name, _ in again.started} == names


def test_killed_in_the_middle_it_continues_to_the_same_table(folder: Path) -> None:
    compare(settings(), folder, resolve, Runner())
    whole = report(folder)
    (folder / "out").rename(folder / "whole")
    with pytest.raises(KeyboardInterrupt):
        compare(settings(), folder, resolve, Runner(dies_at="base, seed 1"))
    assert not (folder / "out/table.md").exists()
    second = Runner()
    assert compare(settings(), folder, resolve, second)
    assert second.started == [("base, seed 1", True), ("better, seed 1", False)]
    assert report(folder) == whole


def test_without_a_checkpoint_a_run_starts_again(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        compare(settings(), folder, resolve, Runner(dies_at="base, seed 0"))
    (folder / "out/base/seed_0/checkpoints/last.ckpt").unlink()
    runner = Runner()
    assert compare(settings(), folder, resolve, runner)
    assert ("base, seed 0", False) in runner.started


def test_a_changed_config_is_a_new_run_and_the_old_one_is_kept(folder: Path) -> None:
    compare(settings(), folder, resolve, Runner())
    old = (folder / "out/better/seed_1/metrics.csv").read_text()
    (folder / "better.yaml").write_text("gain: 0.003   # slower\n")
    runner = Runner()
    compare(settings(), folder, resolve, runner)
    assert runner.started == [("better, seed 0", False), ("better, seed 1", False)]
    (kept,) = (folder / "out/superseded/better").glob("seed_1-*")
    assert (kept / "metrics.csv").read_text() == old
    # A comment, another order of keys or another number of jobs change nothing.
    (folder / "better.yaml").write_text("# still slower\ngain: 3.0e-3\n")
    assert compare(settings(jobs=2), folder, resolve, Runner(fails="better, seed 0"))
    # The budget is part of the run.
    runner = Runner()
    compare(settings(budget=90), folder, resolve, runner)
    assert len(runner.started) == 4


def test_one_failure_does_not_stop_the_others(folder: Path) -> None:
    assert not compare(settings(), folder, resolve, Runner(fails="better, seed 0"))
    markdown = (folder / "out/table.md").read_text()
    assert "- better, seed 0: error: the reward is nonsense (status 1, see out/better/" in markdown
    assert "| better | 1 | 0.8100" in markdown
    assert "seeds not paired for better" in markdown
    runner = Runner()
    assert compare(settings(), folder, resolve, runner)  # and it is tried again
    assert runner.started == [("better, seed 0", False)]


def test_a_score_that_is_no_number_is_counted_and_changes_nothing_else(folder: Path) -> None:
    compare(settings(), folder, resolve, Runner())
    whole = (folder / "out/table.csv").read_text()
    gap = Runner(missing={"better, seed 1": (2, 3)})
    assert compare(settings(out="gap"), folder, resolve, gap)
    assert (folder / "gap/table.csv").read_text() == whole  # the curves are straight lines
    assert "- better, seed 1: 2\n" in (folder / "gap/table.md").read_text()
    stored = json.loads((folder / "gap/table.json").read_text())
    assert stored["missing_scores"] == {"better, seed 1": 2}


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ((5,), "1 of 6 'val/score' are not finite, the last among them"),
        ((0,), "1 of 6 'val/score' are not finite, the first among them"),
        ((1, 2, 3, 4), "4 of 6 'val/score' are not finite: images"),
        (tuple(range(6)), "6 of 6 'val/score' are not finite, the first and the last among them"),
    ],
    ids=["last", "first", "most", "all"],
)
def test_a_run_without_a_curve_costs_itself_only_and_is_not_run_for_ever(
    folder: Path, capsys: pytest.CaptureFixture[str], missing: tuple[int, ...], words: str
) -> None:
    runner = Runner(missing={"better, seed 0": missing})
    assert not compare(settings(jobs=2), folder, resolve, runner)
    assert len(runner.started) == 4
    assert f"better, seed 0: failed: {words}" in capsys.readouterr().out
    assert f"- better, seed 0: {words}" in (folder / "out/table.md").read_text()
    assert "| better | 1 | 0.8100" in (folder / "out/table.md").read_text()
    # Another start would end with the same log.
    again = Runner()
    assert not compare(settings(jobs=2), folder, resolve, again)
    assert again.started == []
    lost = {f"base, seed {seed}": missing for seed in (0, 1)}
    with pytest.raises(UserError, match=r"no run of the reference 'base' .* can be read \(\d of 6"):
        compare(settings(out="lost"), folder, resolve, Runner(missing=lost))


def test_a_run_that_cannot_be_started_costs_itself_only(tmp_path: Path) -> None:
    def begin(run: ComparedRun, resume: bool, alone: bool) -> Slow:
        if run.seed == 1:
            raise OSError("no space left")
        return Slow()

    runs = some_runs(tmp_path, 3)
    failures = run_all(runs, 2, lambda run: None, begin, pause=0)
    assert failures == {"m, seed 1": "could not be started: no space left"}
    assert [run.is_done() for run in runs] == [True, False, True]


def test_the_reference_may_have_a_budget_of_its_own(folder: Path) -> None:
    runner = Runner()
    arguments = settings(budget=60, budgets={"base": 100})
    assert compare(arguments, folder, resolve, runner)
    stops = {
        name: callback["init_args"]["evaluations"]
        for name in ("base", "better")
        for callback in json.loads((folder / f"out/{name}/seed_0/run.json").read_text())["config"][
            "trainer"
        ]["callbacks"]
        if callback["class_path"] == "callbacks.BudgetStop"
    }
    assert stops == {"base": 100, "better": 60}
    table = json.loads((folder / "out/table.json").read_text())
    base, better = table["methods"]
    assert table["target"] == pytest.approx(0.505)  # what the base has after its 100
    assert base["final"] == pytest.approx([0.46, 0.47])  # what it has after 60
    assert better["final"] == pytest.approx([0.64, 0.65])
    assert better["evaluations_to_target"] == pytest.approx([26.25, 23.75])
    assert "base 100" in (folder / "out/table.md").read_text()


def test_the_table_of_what_is_finished_starts_nothing(folder: Path) -> None:
    assert not compare(settings(), folder, resolve, Runner(fails="better, seed 1"))
    before = report(folder)
    runner = Runner()
    with (folder / "out/.lock").open("a") as file:  # while the comparison is at work
        fcntl.flock(file, fcntl.LOCK_EX)
        assert compare(settings(report_only=True), folder, resolve, runner)
    assert not runner.started
    assert report(folder)["table.csv"] == before["table.csv"]


def test_a_run_that_ends_before_its_budget_is_not_counted(folder: Path) -> None:
    assert not compare(settings(), folder, resolve, Runner(ends_early="better, seed 0"))
    failures = json.loads((folder / "out/table.json").read_text())["failures"]
    assert "measured at 40 evaluations, before the budget of 100" in failures["better, seed 0"]
    with pytest.raises(UserError, match=r"'base' was finished .*no 'val/other' was logged"):
        compare(settings(metric="val/other", out="other"), folder, resolve, Runner())


class Slow:
    """A process that ends when it has been looked at three times."""

    alive: ClassVar[list[Slow]] = []

    def __init__(self) -> None:
        self.looks = 0
        Slow.alive.append(self)

    def poll(self) -> int | None:
        self.looks += 1
        if self.looks < 3:
            return None
        Slow.alive.remove(self)
        return 0

    def kill(self) -> None:
        Slow.alive.remove(self)

    def wait(self) -> int:
        return -9


def some_runs(folder: Path, number: int) -> list[ComparedRun]:
    config = compared_config(resolved(1.0), 0, 100, {"epochs": 1})
    return [ComparedRun("m", seed, folder / "m" / f"seed_{seed}", config) for seed in range(number)]


def test_as_many_run_side_by_side_as_are_asked_for(tmp_path: Path) -> None:
    seen = []

    def begin(run: ComparedRun, resume: bool, alone: bool) -> Slow:
        process = Slow()
        seen.append((len(Slow.alive), alone))
        return process

    assert run_all(some_runs(tmp_path, 5), 2, lambda run: None, begin, pause=0) == {}
    assert [alone for _, alone in seen] == [False] * 5
    assert max(number for number, _ in seen) == 2
    assert all(run.is_done() for run in some_runs(tmp_path, 5))


def test_an_interruption_ends_the_processes(tmp_path: Path) -> None:
    def begin(run: ComparedRun, resume: bool, alone: bool) -> Slow:
        if run.seed == 1:
            raise KeyboardInterrupt
        return Slow()

    with pytest.raises(KeyboardInterrupt):
        run_all(some_runs(tmp_path, 2), 2, lambda run: None, begin, pause=0)
    assert Slow.alive == []
    assert not any(run.is_done() for run in some_runs(tmp_path, 2))


def test_the_config_of_a_run() -> None:
    config = compared_config(resolved(2.0, max_epochs=6), 3, 500, {"evaluations": 50})
    assert config["seed_everything"] == 3
    assert config["model"]["init_args"]["gain"] == 2.0
    assert "ckpt_path" not in config
    names = [c["class_path"].rpartition(".")[2] for c in config["trainer"]["callbacks"]]
    assert names == ["CostLogger", "EvaluateByCost", "BudgetStop", "RolloutCheckpoint"]
    assert config["trainer"]["callbacks"][-1]["init_args"] == {"dirpath": "{folder}/checkpoints"}
    assert config["trainer"]["max_epochs"] == -1
    by_epochs = compared_config(resolved(2.0), 3, 500, {"epochs": 2})
    assert by_epochs["trainer"]["check_val_every_n_epoch"] == 2
    fixed = resolved(1.0)
    fixed["model"]["init_args"]["seed"] = 5
    with pytest.raises(UserError, match="seed=5 makes all seeds of the comparison the same run"):
        compared_config(fixed, 3, 500, {"epochs": 1})


def test_the_folder_is_no_part_of_the_hash_and_a_csv_run_starts_again(tmp_path: Path) -> None:
    (here,), (there,) = some_runs(tmp_path / "a", 1), some_runs(tmp_path / "b", 1)
    assert here.config_hash == there.config_hash
    assert here.prepare() is False
    filled = yaml.safe_load((here.folder / "resolved.yaml").read_text())
    assert filled["trainer"]["logger"]["init_args"]["save_dir"] == str(here.folder)
    (here.folder / "checkpoints").mkdir()
    (here.folder / "checkpoints/last.ckpt").touch()
    assert here.prepare() is True
    # A CSVLogger forgets what it had written, so its runs cannot be continued.
    csv_logger = {"class_path": "lightning.pytorch.loggers.CSVLogger"}
    config = compared_config(resolved(1.0, logger=csv_logger), 0, 100, {"epochs": 1})
    assert config["trainer"]["logger"]["class_path"].endswith("CSVLogger")
    run = ComparedRun("m", 0, there.folder, config)
    assert run.prepare() is False
    (run.folder / "checkpoints").mkdir()
    (run.folder / "checkpoints/last.ckpt").touch()
    assert run.prepare() is False


def test_runs_side_by_side_get_one_thread_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[list[str], dict[str, Any]]] = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(
        compared_run.subprocess, "Popen", lambda command, **how: calls.append((command, how))
    )
    (run,) = some_runs(tmp_path, 1)
    run.prepare()
    start(run, False, alone=True)
    start(run, True, alone=False)
    (first, how_first), (second, how_second) = calls
    fit = [sys.executable, "-m", "aegpo", "fit", "--config", str(run.folder / "resolved.yaml")]
    assert (first, second) == (fit, [*fit, "--ckpt_path", "last"])
    assert "OMP_NUM_THREADS" not in how_first["env"]
    assert how_second["env"]["OMP_NUM_THREADS"] == "1"


def test_event_files_of_a_resumed_run_are_read_in_their_order(tmp_path: Path) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    for number, values in enumerate([{0: 0.5, 1: 0.25, 2: 0.75}, {2: 0.875, 3: 1.0}]):
        writer = EventFileWriter(str(tmp_path), filename_suffix=f".{number}")
        for step, value in values.items():
            summary = Summary(value=[Summary.Value(tag="val/score", simple_value=value)])
            writer.add_event(Event(step=step, summary=summary, wall_time=float(step)))
        writer.close()
    # The first was killed while it wrote.
    (first,) = tmp_path.glob("*.0")
    first.write_bytes(first.read_bytes()[:-3])
    scalars = read_scalars(tmp_path, ["val/score", "never"])
    assert scalars == {"val/score": {0: 0.5, 1: 0.25, 2: 0.875, 3: 1.0}, "never": {}}


# The command line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reference": "grpo"}, "reference='grpo' is none of the methods base, better"),
        ({"seeds": [1, 1]}, "seeds=[1, 1] must be one or more different numbers"),
        ({"budget": 0}, "budget=0"),
        ({"budgets": {"best": 200}}, "budgets names 'best' with 200"),
        ({"budgets": {"base": 99}}, "at least budget=100"),
        ({"budgte": 5}, "budgte"),
        ({"evaluate_every": {"minutes": 5}}, "must be `evaluations: n` or `epochs: n`"),
        ({"methods": {"base": ["gone.yaml"]}}, "names gone.yaml, which does not exist"),
        ({"methods": {"base": [], "better": [3]}}, "an entry is a config file or nested keys"),
        ({"methods": {"base": 3}}, "methods"),
        ({"methods": {"base": [], "../x": []}}, "cannot be a folder"),
    ],
)
def test_a_mistake_gets_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], words: str
) -> None:
    written = vars(settings()) | change
    (folder / "compare.yaml").write_text(yaml.safe_dump(written))
    with pytest.raises(SystemExit) as stopped:
        main(["--config", "compare.yaml"])
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and words in lines[0]


def test_the_file_arrives_as_it_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    selector = {"class_path": "aegpo.exploration.RandomSteps", "init_args": {"num": 2}}
    override = {"model": {"init_args": {"step_selector": selector, "lr": 1e-3}}}
    methods = {"base": [], "other": ["better.yaml", override]}
    (folder / "sub").mkdir()
    file = folder / "sub/compare.yaml"
    file.write_text(yaml.safe_dump(vars(settings(methods=methods))))
    arrived = []
    monkeypatch.setattr(
        compare_module, "compare", lambda *args: arrived.append(args) or len(arrived) == 1
    )
    arguments = ["--config", str(file), "--jobs", "3", "--seeds", "[4,5]"]
    main(arguments)
    assert arrived == [(settings(methods=methods, jobs=3, seeds=[4, 5]), folder / "sub")]
    with pytest.raises(SystemExit) as stopped:  # a run has failed
        main(arguments)
    assert stopped.value.code == 1


def test_two_comparisons_never_share_a_folder(folder: Path) -> None:
    pytest.importorskip("fcntl")

    def interfere(arguments: list[list[str]]) -> list[dict[str, Any]]:
        with pytest.raises(UserError, match="another comparison is at work in out"):
            compare(settings(), folder, resolve, Runner())
        return resolve(arguments)

    assert compare(settings(), folder, interfere, Runner())


def test_the_bundled_comparison_names_files_that_are_there(tmp_path: Path) -> None:
    file = ROOT / "configs/compare/shapes.yaml"
    bundled = Comparison(**yaml.safe_load(file.read_text()))
    bundled.validate()
    arguments = bundled.arguments(file.parent)
    assert list(arguments) == ["grpo", "aegpo", "fixed_steps", "random_steps", "all_steps"]
    assert (len(bundled.seeds), bundled.reference) == (5, "grpo")
    named = [Path(name).name for name in arguments["grpo"][1::2]]
    assert named == ["shapes.yaml", "aegpo.yaml", "grpo.yaml"]


def test_the_command_and_its_help_load_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['aegpo', 'compare', '--help']\n"
        "from lightning_modules.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--jobs" in done.stdout
    assert done.stdout.endswith("False\n")
