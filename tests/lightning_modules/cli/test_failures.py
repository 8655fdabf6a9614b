from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from tiny_training import tiny_data, tiny_module, tiny_trainer

import aegpo
from aegpo.sde import GaussianStep
from aegpo.utilities.halving import is_out_of_memory
from lightning_modules.arguments.sources import OUR_PACKAGES
from lightning_modules.cli import lightning_cli as cli
from lightning_modules.cli.failures import ADVICE, ONE_ROW, explain_memory, is_user_error


def run_out(*_: Any, **__: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")


@pytest.mark.parametrize(
    ("place", "where", "advice"),
    [
        ("aegpo.policies.StableDiffusion3.encode_texts", "encode", "offload: true"),
        ("aegpo.policies.StableDiffusion3.predict", "rollout, one row at a time", "offload: true"),
        ("aegpo.policies.StableDiffusion3.decode_latents", "decode, one row at a time", "smaller"),
        ("aegpo.objectives.PolicyGradient.samples", "update", "micro_batch_size"),
    ],
)
def test_the_line_says_where_and_what_to_change(
    tiny_sd3_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    where: str,
    advice: str,
) -> None:
    monkeypatch.setattr(place, run_out)
    with pytest.raises((torch.OutOfMemoryError, MemoryError)) as caught:
        tiny_trainer(tmp_path, [], limit_val_batches=0).fit(
            tiny_module(tiny_sd3_folder), tiny_data(tmp_path)
        )
    line = explain_memory(caught.value)
    assert line.startswith(f"out of memory in {where}: ") and advice in line
    assert line.endswith("(CUDA out of memory. Tried to allocate 2.00 GiB.)")


def test_the_command_line_prints_that_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "AEGPOCLI", run_out)
    with pytest.raises(SystemExit) as left:
        cli.main([])
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("error: out of memory: ")


def test_advice_names_functions_that_there_are() -> None:
    root = Path(aegpo.__file__).parents[1]
    files = [file for package in OUR_PACKAGES for file in (root / package).rglob("*.py")]
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text())))
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    assert set(ADVICE) | set(ONE_ROW) <= defined


def test_other_errors_are_not_about_memory() -> None:
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))


def test_faults_keep_their_traceback_and_messages_do_not() -> None:
    with pytest.raises(RuntimeError) as fault:
        torch.ones(2) @ torch.ones(3)
    assert not is_user_error(fault.value)
    # A `raise` statement in one of our files; here aegpo's refusal of a log-prob without noise.
    step = GaussianStep(mean=torch.zeros(1, 4), std=torch.zeros(1, 1))
    with pytest.raises(ValueError) as message:
        step.log_prob(torch.zeros(1, 4))
    assert is_user_error(message.value)
    # The same type from an operation in the same file is a fault.
    with pytest.raises((RuntimeError, TypeError, ValueError)) as wrong_shape:
        GaussianStep(mean=torch.zeros(1, 4), std=torch.ones(1, 1)).log_prob(torch.zeros(1, 3))
    assert not is_user_error(wrong_shape.value)
    assert is_user_error(FileNotFoundError(2, "No such file", "prompts.txt"))
    assert is_user_error(MisconfigurationException("no"))
