"""Every tensor of the four packages is made on a device that is named."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.utils._device as default_device

ROOT = Path(__file__).parents[1]
PACKAGES = ("aegpo", "lightning_modules", "callbacks", "datamodules")
# What a default device changes, and what would follow it in spirit: a generator has a device, too.
FACTORIES = {made.__name__ for made in default_device._device_constructors()} | {"Generator"}
LAYERS = {
    name
    for name, kind in vars(torch.nn).items()
    if inspect.isclass(kind) and "device" in inspect.signature(kind).parameters
}
LOADERS = {"from_pretrained", "from_config", "create_model"}
SETTLED = {
    "aegpo/rewards/learned/weights.py": "inside FrozenNetworkReward.setup, which says where",
    "aegpo/planning/policy_size.py": "networks without weights, on meta, and what has no tensors",
}
"""Files whose loaders are called inside a device, or load nothing that has one."""
WITHOUT_TENSORS = {"AutoImageProcessor", "config_class"}
"""What is loaded from a folder and holds no tensor."""


def unnamed(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of each call that makes tensors wherever the default device is."""
    tree = ast.parse(source)
    inside = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.With)
        and any(
            ast.unparse(item.context_expr).startswith(("torch.device(", "_on_the_cpu("))
            for item in block.items
        )
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner, name = ast.unparse(node.func.value), node.func.attr
        makes = (owner == "torch" and name in FACTORIES) or (
            owner in ("nn", "torch.nn") and name in LAYERS
        )
        if makes and not any(keyword.arg == "device" for keyword in node.keywords):
            yield node.lineno, f"{owner}.{name}"
        loads = name in LOADERS and owner.rpartition(".")[2] not in WITHOUT_TENSORS
        if loads and id(node) not in inside:
            yield node.lineno, f"{owner}.{name}"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_tensor_names_its_device(package: str) -> None:
    found = []
    for file in sorted((ROOT / package).rglob("*.py")):
        name = str(file.relative_to(ROOT))
        for line, call in unnamed(file.read_text(encoding="utf-8")):
            if not (name in SETTLED and call.rpartition(".")[2] in LOADERS):
                found.append(f"{name}:{line} {call}")
    assert not found, (
        "these follow torch's default device; name one (device=…), or load inside "
        f"`with torch.device(…)`: {found}"
    )


def test_what_would_follow_the_default_device_is_found() -> None:
    source = """
torch.zeros(3)
torch.zeros(3, device=x.device)
torch.zeros_like(x)
x.new_zeros(3)
torch.Generator().manual_seed(0)
nn.Linear(3, 4)
nn.ReLU()
Model.from_pretrained(folder)
with no_grad(), torch.device("cpu"):
    Model.from_pretrained(folder)
AutoImageProcessor.from_pretrained(folder)
torch.from_numpy(x)
"""
    calls = [call for _, call in unnamed(source)]
    assert sorted(calls) == ["Model.from_pretrained", "nn.Linear", "torch.Generator", "torch.zeros"]
    assert {"tensor", "arange", "empty", "full", "randn", "linspace", "eye", "ones"} <= FACTORIES


def test_no_exception_is_out_of_date() -> None:
    for name in SETTLED:
        calls = [call for _, call in unnamed((ROOT / name).read_text(encoding="utf-8"))]
        assert any(call.rpartition(".")[2] in LOADERS for call in calls), name
