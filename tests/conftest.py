"""Fixtures that the whole suite shares."""

from __future__ import annotations

import os

# Before torch is imported: one thread keeps tiny models quick and their sums in one order.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from free_port import free_port
from local_http import forget_proxies

forget_proxies(os.environ)
torch.set_num_threads(1)
# A busy machine is slow, and slow is no failure; the same examples every time.
hypothesis.settings.register_profile("aegpo", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("aegpo")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With ``--cov=<package>`` trace that package's own tests, those in a folder of its name.

    Under a tracer all Python is slower by a third, torch's and jsonargparse's too, and a line that
    only somebody else's test or a whole run visits is hardly tested.
    """
    measured = set(getattr(config.option, "cov_source", [])) - {True}
    for item in items:
        if measured and measured.isdisjoint(item.path.relative_to(config.rootpath).parts):
            item.add_marker("no_cover")


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A port for this test's process groups, and nothing of its environment for the next test."""
    before = dict(os.environ)
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def no_module_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgets the module that an earlier test of this process had in its own folder."""
    sys.modules.pop("my_module", None)
    others = [entry for entry in sys.path if not Path(entry, "my_module.py").exists()]
    monkeypatch.setattr(sys, "path", others)  # what this test adds goes again, too


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, so that nothing depends on being run inside the repository."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["aegpo"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("AEGPO_DEBUG", raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def tiny_sd3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the random `tiny_sd3` pipeline; read it, never write to it."""
    from tiny_pipelines import save_tiny_sd3

    return save_tiny_sd3(tmp_path_factory.mktemp("tiny_sd3"))


@pytest.fixture(scope="session")
def tiny_sd3_dual_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_sd3_folder`, with SD3.5 Medium's dual attention and q/k norms."""
    from tiny_pipelines import save_tiny_sd3

    return save_tiny_sd3(tmp_path_factory.mktemp("tiny_sd3_dual"), dual_attention=True)


@pytest.fixture(scope="session")
def tiny_sd15_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the random `tiny_sd15` pipeline; read it, never write to it."""
    from tiny_unet import save_tiny_sd15

    return save_tiny_sd15(tmp_path_factory.mktemp("tiny_sd15"))


@pytest.fixture(scope="session")
def tiny_sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the random `tiny_sdxl` pipeline; read it, never write to it."""
    from tiny_unet import save_tiny_sdxl

    return save_tiny_sdxl(tmp_path_factory.mktemp("tiny_sdxl"))


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for PickScore and the aesthetic predictor."""
    from tiny_rewards import head_tensors, save_tiny_clip

    from aegpo.rewards.learned.aesthetic import AestheticV2

    folder = save_tiny_clip(tmp_path_factory.mktemp("tiny_clip"))
    head = head_tensors(16, "", torch.Generator().manual_seed(1))
    torch.save(head, folder / AestheticV2.filename)
    return folder
