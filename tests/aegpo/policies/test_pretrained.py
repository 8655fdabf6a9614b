from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from diffusers import StableDiffusion3Pipeline
from hub_errors import http_error
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)

from aegpo.policies import pretrained
from aegpo.policies.adapters.layouts import Form
from aegpo.policies.families.stable_diffusion3 import StableDiffusion3
from aegpo.policies.pretrained import find_pipeline, read_model_index


def test_folder_hub_id_and_bundled_name(
    tmp_path: Path, tiny_sd3_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_pipeline(str(tmp_path)) == tmp_path
    assert find_pipeline("owner/some-model.v2") == "owner/some-model.v2"
    monkeypatch.setitem(pretrained.BUNDLED, "shapes", tiny_sd3_folder)
    assert find_pipeline("shapes") == tiny_sd3_folder
    monkeypatch.setitem(pretrained.BUNDLED, "shapes", tmp_path)
    with pytest.raises(FileNotFoundError, match="not in this installation"):
        find_pipeline("shapes")


@pytest.mark.parametrize("name", ["./absent/folder", "absent", "/absent/a/b", ""])
def test_what_is_neither_folder_nor_hub_id(name: str) -> None:
    if name == "":
        assert find_pipeline(name) == Path(".")  # the current folder, refused in the next step
        return
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub id"):
        find_pipeline(name)


def test_an_absent_t5_is_seen_in_the_index(tiny_sd3_folder: Path) -> None:
    index = read_model_index(tiny_sd3_folder, StableDiffusion3Pipeline)
    assert index["text_encoder_3"] == [None, None]


def test_wrong_folders_get_one_line_before_anything_loads(
    tmp_path: Path, tiny_sd3_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(StableDiffusion3Pipeline, "from_pretrained", refuse)

    def error_of(folder: Path) -> str:
        with pytest.raises((FileNotFoundError, ValueError)) as caught:
            StableDiffusion3(str(folder))
        message = str(caught.value)
        assert "\n" not in message and "StableDiffusion3Pipeline" in message
        return message

    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no model_index.json" in error_of(empty)

    other = tmp_path / "other"
    other.mkdir()
    (other / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    assert "is a FluxPipeline" in error_of(other)

    (other / "model_index.json").write_text("{")
    assert "not valid JSON" in error_of(other)

    partial = tmp_path / "partial"
    shutil.copytree(tiny_sd3_folder, partial)
    shutil.rmtree(partial / "vae")
    assert "lacks the folders ['vae']" in error_of(partial)


@pytest.mark.parametrize(
    ("cause", "raised", "says"),
    [
        (LocalEntryNotFoundError("x\ny"), FileNotFoundError, "the hub is out of reach"),
        (http_error(RepositoryNotFoundError), FileNotFoundError, "is no folder here"),
        (http_error(GatedRepoError), PermissionError, "is gated: accept its terms at"),
        (http_error(RemoteEntryNotFoundError), FileNotFoundError, "has no model_index.json"),
        (None, ValueError, "could not be read: many lines"),
    ],
)
def test_an_unreachable_hub_id_is_one_line(
    cause: Exception | None,
    raised: type[Exception],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("many\nlines") from cause

    monkeypatch.setattr(StableDiffusion3Pipeline, "load_config", unreachable)
    with pytest.raises(raised, match=f"pretrained='owner/name' .*{says}") as caught:
        StableDiffusion3("owner/name")
    assert "\n" not in str(caught.value)


class Heard(logging.Handler):
    """Keeps what a logger says."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def test_saving_and_loading_back_says_nothing(
    tiny_sd3_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    heard = Heard()
    for name in ("loaders.lora_base", "loaders.peft", "pipelines.pipeline_utils"):
        monkeypatch.setattr(logging.getLogger(f"diffusers.{name}"), "filters", [])
        monkeypatch.setattr(logging.getLogger(f"diffusers.{name}"), "handlers", [heard])
    policy = StableDiffusion3(str(tiny_sd3_folder), lora_rank=2, max_sequence_length=4)
    for layout in ("diffusers", "merged"):
        (tmp_path / layout).mkdir()
        policy.save_as(tmp_path / layout, Form(layout, "mine"))
        policy.load_exported(tmp_path / layout)
    assert heard.lines == [] and capfd.readouterr().err == ""


def test_prompts_that_are_too_long_are_told_once(
    tiny_sd3_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, module = Heard(), StableDiffusion3Pipeline.__module__
    for name in (module, "transformers.tokenization_utils_base"):
        monkeypatch.setattr(logging.getLogger(name), "filters", [])
        monkeypatch.setattr(logging.getLogger(name), "handlers", [heard])
    policy = StableDiffusion3(str(tiny_sd3_folder), lora_rank=2, max_sequence_length=4)
    policy.encode([f"{number} " + "a red circle " * 100 for number in range(3)])
    told = [line for line in heard.lines if "truncated" in line]
    assert len(told) == 1 and told[0].endswith("(more such prompts are not named)")
    assert not [line for line in heard.lines if "Token indices" in line]  # the same, of another
