from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import tiny_data, tiny_module, tiny_trainer

from lightning_modules.cli import lightning_cli as cli
from lightning_modules.cli.failures import explain_memory, is_out_of_memory


def run_out(*_: Any, **__: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")


@pytest.mark.parametrize(
    ("place", "where", "advice"),
    [
        ("aegpo.policies.StableDiffusion3.encode_texts", "encode", "offload: true"),
        ("aegpo.policies.StableDiffusion3.predict", "rollout", "max_batch"),
        ("aegpo.policies.StableDiffusion3.decode_latents", "decode", "decode_batch"),
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
    with pytest.raises(torch.OutOfMemoryError) as caught:
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


def test_other_errors_are_not_about_memory() -> None:
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
