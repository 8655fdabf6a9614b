"""The half of `aegpo doctor` that needs neither Lightning nor a config: checks of the machine.

torch and its companions are imported in a process of their own: a torchvision that does not match
torch, or a broken driver, is then a finding instead of the end of the program.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from aegpo.utilities.findings import Finding, report

PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "diffusers",
    "transformers",
    "peft",
    "jsonargparse",
)
"""Distributions that must be installed, with their versions in the report."""
RECORDABLE_BACKENDS = (
    "native",
    "_native_cudnn",
    "_native_efficient",
    "_native_flash",
    "_native_math",
)
"""Attention backends of diffusers that go through torch's scaled_dot_product_attention, the call
that the entropy recorder watches."""
MINIMUM_FREE_GB = 2.0
"""Less free disk space than this is a warning: room for a few checkpoints and image grids."""
_PROBE = """
import json, os
found = {}
try:
    import torch
    found["torch"] = torch.__version__
    found["torch_cuda"] = torch.version.cuda
    found["threads"] = torch.get_num_threads()
    found["devices"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found["bf16"] = bool(found["devices"]) and torch.cuda.is_bf16_supported()
    found["mps"] = torch.backends.mps.is_available()
except Exception as error:
    found["torch_error"] = f"{type(error).__name__}: {error}"
try:
    import torchvision, torchvision.ops
    found["torchvision"] = torchvision.__version__
    torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except Exception as error:
    found["torchvision_error"] = f"{type(error).__name__}: {error}"
print("\\n" + json.dumps(found))
"""


_HELP = """\
usage: aegpo doctor [--config FILE ...] [--key value ...]
       aegpo doctor --resume [--kills N] --config FILE ... [--key value ...]

Checks versions, torch against torchvision, accelerator, attention backend and disk space. With a
config it also builds the model and the data, draws one small rollout, and checks that the first
update's probability ratio is 1 and its gradient finite. Exit status 1 if a check fails.

With --resume it runs the config's training for a few iterations instead, kills it (kill -9), goes
on with --ckpt_path last, and compares it with a run that was never killed; --resume --help has its
options.
"""


def main(args: list[str] | None = None) -> bool:
    """Check the machine; a failed check is status 1.

    Args:
        args: Arguments after `doctor` instead of those of the process.

    Returns:
        Whether a config is given, whose first update is to be checked as well.
    """
    arguments = sys.argv[2:] if args is None else args
    if "--resume" in arguments:
        from lightning_modules.commands.doctor.resume import main as prove_resuming

        prove_resuming(arguments)
        return False
    if "-h" in arguments or "--help" in arguments:
        print(_HELP, end="")
        return False
    if not report(check_environment(Path("runs"))):
        raise SystemExit(1)
    return bool(arguments)


def check_environment(log_dir: Path) -> Iterable[Finding]:
    """Look at Python, packages, torch, accelerator, attention backend and disk, in that order.

    Args:
        log_dir: The folder that runs are written to; it need not exist yet.

    Yields:
        One finding after another.
    """
    yield _check_python(sys.version_info[:3])
    yield from _check_packages()
    found = _probe_torch()
    yield from check_torch(found)
    yield check_attention_backend(os.environ.get("DIFFUSERS_ATTN_BACKEND", "native"))
    yield check_writable(log_dir)


def _check_python(version: tuple[int, int, int]) -> Finding:
    text = f"{'.'.join(map(str, version))} on {platform.system()} {platform.machine()}"
    if version < (3, 10):
        return Finding("python", "failed", f"{text}; aegpo needs Python 3.10 or newer")
    return Finding("python", "ok", text)


def _check_packages() -> Iterable[Finding]:
    for name in PACKAGES:
        try:
            yield Finding(name, "ok", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "failed", f"not installed; run: pip install {name}")


def _probe_torch(timeout: float = 300.0) -> dict[str, object]:
    """Import torch and torchvision in another process and bring back what it saw."""
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"torch_error": f"importing it took longer than {timeout:.0f} seconds"}
    try:
        found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"torch_error": f"the process ended with status {done.returncode}: {last}"}
    return found


def check_torch(found: dict[str, object]) -> Iterable[Finding]:
    """Turn what the probing process saw into findings.

    Args:
        found: Keys ``torch``, ``torch_cuda``, ``threads``, ``devices``, ``bf16``, ``mps``,
            ``torchvision`` and, where an import failed, ``torch_error`` and ``torchvision_error``.

    Yields:
        Whether torch and torchvision match, then what there is to compute on.
    """
    if "torch_error" in found:
        yield Finding("torch import", "failed", f"{found['torch_error']}; reinstall torch")
        return
    if "torchvision_error" in found:
        first_line = str(found["torchvision_error"]).splitlines()[0]
        yield Finding(
            "torchvision",
            "failed",
            f"does not work with torch {found['torch']} ({first_line}); install both from the same "
            "index, e.g. pip install --force-reinstall torch torchvision, because a CPU build of "
            "one beside a CUDA build of the other satisfies pip and breaks `import lightning`",
        )
    else:
        pair = f"torch {found['torch']} with torchvision {found['torchvision']}"
        yield Finding("torch pair", "ok", pair)
    devices = found.get("devices")
    if isinstance(devices, list) and devices:
        names = ", ".join(map(str, devices))
        if found.get("bf16"):
            yield Finding("accelerator", "ok", f"{len(devices)} x CUDA, bf16: {names}")
        else:
            yield Finding("accelerator", "warning", f"no bf16, use precision 32-true: {names}")
    elif found.get("mps"):
        yield Finding("accelerator", "ok", "Apple MPS")
    elif found.get("torch_cuda") and shutil.which("nvidia-smi"):
        yield Finding(
            "accelerator",
            "warning",
            f"nvidia-smi is here, but torch (CUDA {found['torch_cuda']}) sees no device: the "
            "driver may be older than this build of torch",
        )
    else:
        yield Finding("accelerator", "ok", f"none; the CPU with {found.get('threads')} threads")


def check_attention_backend(backend: str) -> Finding:
    """Say whether attention entropy can be recorded with this attention backend of diffusers.

    Args:
        backend: Name of the backend, as in the environment variable DIFFUSERS_ATTN_BACKEND.

    Returns:
        A warning for kernels that bypass torch's scaled_dot_product_attention.
    """
    if backend in RECORDABLE_BACKENDS:
        return Finding("attention", "ok", f"diffusers backend {backend!r}")
    return Finding(
        "attention",
        "warning",
        f"diffusers backend {backend!r} bypasses torch's attention, so no entropy can be recorded; "
        "unset DIFFUSERS_ATTN_BACKEND or set it to native",
    )


def check_writable(folder: Path) -> Finding:
    """Check that the folder, or the nearest one above that exists, can be written and has room.

    Args:
        folder: Where files will go; it is not created.

    Returns:
        ``failed`` if it cannot be written, a warning below ``MINIMUM_FREE_GB``.
    """
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        return Finding("log folder", "failed", f"{existing} is a file; choose another folder")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        return Finding("log folder", "failed", f"cannot write to {existing}: {error.strerror}")
    free = shutil.disk_usage(existing).free / 1e9
    if free < MINIMUM_FREE_GB:
        return Finding("log folder", "warning", f"{folder}: only {free:.1f} GB free")
    return Finding("log folder", "ok", f"{folder}: {free:.0f} GB free")
