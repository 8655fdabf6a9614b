"""Tiny pipelines as the product makes them; what trains on them is tested by family."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from tiny_families import FAMILIES

from aegpo.tiny import _BUILDERS, tiny_folder, tiny_pipeline


def test_every_family_has_one() -> None:
    kinds = {family.policy.pipeline_class.__name__ for family in FAMILIES}
    assert kinds == set(_BUILDERS)


def test_a_folder_is_made_once_and_silently(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    state = torch.random.get_rng_state()
    folder = tiny_folder("StableDiffusion3Pipeline", tmp_path / "made/here")
    assert torch.equal(state, torch.random.get_rng_state())
    assert capfd.readouterr() == ("", "") and not caplog.records
    assert logging.getLogger("diffusers.pipelines.pipeline_utils").level == logging.NOTSET
    index = folder / "model_index.json"
    written = index.stat().st_mtime_ns
    assert tiny_folder("StableDiffusion3Pipeline", tmp_path / "made/here") == folder
    assert index.stat().st_mtime_ns == written
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_another_rank_may_be_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        def save_pretrained(self, folder: Path) -> None:
            monkeypatch.undo()
            tiny_folder("StableDiffusionPipeline", tmp_path)
            (folder / "late").write_text("")

    monkeypatch.setattr("aegpo.tiny.tiny_pipeline", lambda name: Slow())
    folder = tiny_folder("StableDiffusionPipeline", tmp_path)
    assert (folder / "model_index.json").is_file() and not (folder / "late").exists()


def test_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no tiny WuerstchenPipeline; there are Flux2"):
        tiny_pipeline("WuerstchenPipeline")
