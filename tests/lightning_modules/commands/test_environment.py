"""The doctor's findings for machines that we do not have at hand."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from aegpo.utilities.findings import Finding, report
from lightning_modules.commands.doctor import environment as doctor
from lightning_modules.commands.doctor.environment import (
    check_attention_backend,
    check_environment,
    check_torch,
    check_writable,
)

HEALTHY = {
    "torch": "2.15.0",
    "torchvision": "0.29.2",
    "torch_cuda": None,
    "threads": 2,
    "devices": [],
    "bf16": False,
    "mps": False,
}


def test_report_prints_every_line_and_returns_whether_none_failed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = [Finding("a", "ok", "x"), Finding("b", "warning", "y")]
    assert report(good)
    assert not report([Finding("c", "failed", "z"), *good])
    assert capsys.readouterr().out.count("\n") == 5


def test_environment_of_the_tests_has_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DIFFUSERS_ATTN_BACKEND", raising=False)
    findings = {finding.name: finding for finding in check_environment(tmp_path / "runs")}
    assert not [finding for finding in findings.values() if finding.status == "failed"]
    assert findings["torch"].detail == importlib.metadata.version("torch")
    assert {"python", "torch pair", "accelerator", "attention", "log folder"} <= findings.keys()


def test_a_torchvision_that_does_not_match_is_named() -> None:
    error = "RuntimeError: operator torchvision::nms does not exist\nmore"
    findings = list(check_torch({**HEALTHY, "torchvision_error": error}))
    assert findings[0].status == "failed"
    assert "torchvision::nms" in findings[0].detail and "same index" in findings[0].detail
    assert "\n" not in findings[0].detail
    assert findings[1].name == "accelerator"


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({}, "ok", "the CPU with 2 threads"),
        ({"devices": ["A100"], "bf16": True}, "ok", "1 x CUDA, bf16: A100"),
        ({"devices": ["T4", "T4"]}, "warning", "no bf16"),
        ({"mps": True}, "ok", "Apple MPS"),
        ({"torch_cuda": "13.2"}, "warning", "driver"),
    ],
)
def test_accelerators(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, object], status: str, words: str
) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    finding = list(check_torch({**HEALTHY, **change}))[-1]
    assert (finding.name, finding.status) == ("accelerator", status)
    assert words in finding.detail


def test_a_torch_that_cannot_be_imported_is_one_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PROBE", "raise SystemExit('no libcudart')")
    found = doctor._probe_torch()
    assert found == {"torch_error": "the process ended with status 1: no libcudart"}
    assert [finding.status for finding in check_torch(found)] == ["failed"]


def test_a_torch_that_hangs_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*args: object, **kwargs: object) -> None:
        raise subprocess.TimeoutExpired("python", 1.0)

    monkeypatch.setattr(doctor.subprocess, "run", hang)
    assert "longer than 1 seconds" in str(doctor._probe_torch(1.0)["torch_error"])


def test_missing_packages_and_old_python_are_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-distribution"))
    found = list(doctor._check_packages())
    assert [finding.status for finding in found] == ["ok", "failed"]
    assert "pip install no-such-distribution" in found[1].detail
    assert doctor._check_python((3, 9, 1)).status == "failed"
    assert doctor._check_python(sys.version_info[:3]).status == "ok"


def test_only_torch_attention_can_be_recorded() -> None:
    assert check_attention_backend("native").status == "ok"
    assert check_attention_backend("_native_flash").status == "ok"
    finding = check_attention_backend("sage")
    assert finding.status == "warning" and "DIFFUSERS_ATTN_BACKEND" in finding.detail


def test_log_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_writable(tmp_path / "not" / "there").status == "ok"
    assert not (tmp_path / "not").exists()
    (tmp_path / "file").write_text("")
    assert check_writable(tmp_path / "file" / "runs").status == "failed"
    monkeypatch.setattr(doctor, "MINIMUM_FREE_GB", 1e9)
    assert check_writable(tmp_path).status == "warning"

    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    assert "Permission denied" in check_writable(tmp_path).detail
