from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from hub_errors import http_error
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors.torch import save_file
from tiny_rewards import save_tiny_clip
from torch import nn
from transformers import AutoTokenizer, CLIPModel

from aegpo.rewards.learned import weights
from aegpo.rewards.learned.weights import (
    check_file,
    check_folder,
    fetch_file,
    load_exactly,
    load_pretrained,
    load_tensors,
)
from aegpo.utilities.hub import explained, is_hub_id


def test_what_may_be_a_hub_id() -> None:
    assert is_hub_id("xswu/HPSv2") and is_hub_id("google-bert/bert-base-uncased")
    for path in ("weights/hps.pt", "./a/b", "/a/b", "a/b/c", "name", ""):
        assert not is_hub_id(path)


def test_sources_are_checked_without_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(weights, "hf_hub_download", refuse)
    file = tmp_path / "w.pt"
    file.touch()
    for source in (str(file), str(tmp_path), "owner/name"):
        check_file(source, "w.pt", "weights")
    check_folder(str(tmp_path), "w.pt", "model")
    check_folder("owner/name", "w.pt", "model")
    assert fetch_file(str(tmp_path), "w.pt", "weights") == file
    assert fetch_file(str(file), "other.pt", "weights") == file

    empty = tmp_path / "empty"
    empty.mkdir()
    for source in (str(empty), str(tmp_path / "absent.pt"), "models/w.pt"):
        with pytest.raises(FileNotFoundError, match=r"^weights='.*nor a folder with w\.pt, nor"):
            check_file(source, "w.pt", "weights")
    for source in (str(empty), str(file), "models/w.pt"):
        with pytest.raises(FileNotFoundError, match=r"^model='.*neither a folder with config\.js"):
            check_folder(source, "config.json", "model")


@pytest.mark.parametrize(
    ("error", "raised", "says"),
    [
        (
            GatedRepoError,
            PermissionError,
            "is gated: accept its terms at https://huggingface.co/a/",
        ),
        (RepositoryNotFoundError, FileNotFoundError, "no public repository on the hub"),
        (RemoteEntryNotFoundError, FileNotFoundError, "is on the hub, but has no w.pt;"),
        (LocalEntryNotFoundError("x\ny"), FileNotFoundError, "the hub is out of reach"),
        (OfflineModeIsEnabled("x\ny"), FileNotFoundError, "the hub is out of reach"),
        (TimeoutError(), FileNotFoundError, "the hub is out of reach"),
        (PermissionError("x\ny"), ValueError, "could not be read: x"),
    ],
)
def test_errors_of_the_hub_are_one_line(
    error: Any, raised: type[Exception], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = http_error(error) if isinstance(error, type) else error

    def fail(*_: object) -> None:
        raise instance

    monkeypatch.setattr(weights, "hf_hub_download", fail)
    with pytest.raises(raised) as caught:
        fetch_file("a/b", "w.pt", "weights")
    # Libraries wrap the hub's errors in their own; the reason is found all the same.
    with pytest.raises(raised), explained("a/b", "weights"):
        raise OSError("wrapped") from instance
    message = str(caught.value)
    assert message.startswith("weights='a/b' ") and says in message and "\n" not in message
    if "could not be read" not in says:
        assert "give a local path as weights" in message


def test_transformers_without_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for kind in (CLIPModel, AutoTokenizer):
        with pytest.raises(FileNotFoundError, match=r"^clip='a/b-none' .* hub is out of reach"):
            load_pretrained(kind, "a/b-none", "clip")


def test_a_model_is_complete_or_refused(tmp_path: Path) -> None:
    folder = save_tiny_clip(tmp_path / "clip")
    assert load_pretrained(CLIPModel, str(folder), "clip").config.projection_dim == 16
    tensors = load_tensors(folder / "model.safetensors")
    del tensors["logit_scale"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights of CLIPModel are absent: logit_scale"):
        load_pretrained(CLIPModel, str(folder), "clip")


def test_checkpoints_are_read_as_tensors_alone(tmp_path: Path) -> None:
    tensors = {"weight": torch.ones(1, 2), "bias": torch.zeros(1)}
    torch.save(tensors, tmp_path / "plain.pt")
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "nested.pt")
    save_file(tensors, tmp_path / "safe.safetensors")
    for name in ("plain.pt", "nested.pt", "safe.safetensors"):
        assert torch.equal(load_tensors(tmp_path / name)["weight"], tensors["weight"])

    torch.save(nn.Linear(2, 1), tmp_path / "code.pt")
    (tmp_path / "page.pt").write_text("<html>not found</html>")
    (tmp_path / "page.safetensors").write_text("<html>not found</html>")
    (tmp_path / "empty.pt").touch()
    for name in ("code.pt", "page.pt", "page.safetensors", "empty.pt"):
        with pytest.raises(ValueError, match=r"is no checkpoint of tensors") as caught:
            load_tensors(tmp_path / name)
        assert "\n" not in str(caught.value)
    torch.save({"weight": 3}, tmp_path / "numbers.pt")
    with pytest.raises(ValueError, match="holds no state dict"):
        load_tensors(tmp_path / "numbers.pt")


def test_a_checkpoint_has_to_fit(tmp_path: Path) -> None:
    network = nn.Linear(2, 1)
    load_exactly(network, {"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, "weights='x'")
    assert network.weight.tolist() == [[1, 1]]
    with pytest.raises(ValueError) as caught:
        load_exactly(network, {"weight": torch.ones(2, 2), "b": torch.zeros(1)}, "weights='x'")
    assert str(caught.value).startswith(
        "weights='x' does not fit the published network of 2 tensors: 1 missing (bias, ...), "
        "1 unknown (b, ...), 1 of another shape (weight, ...)"
    )
