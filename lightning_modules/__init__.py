"""Training modules and the command line.

The classes are imported when first asked for, so that ``aegpo --help`` answers without loading
Lightning, and ``class_path: lightning_modules.AEGPOModule`` in a YAML file still works.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_modules.aegpo_module import AEGPOModule
    from lightning_modules.autoencoder_module import AutoencoderModule
    from lightning_modules.cli.lightning_cli import AEGPOCLI
    from lightning_modules.cli.trainer import AEGPOTrainer
    from lightning_modules.flow_matching_module import FlowMatchingModule

_MODULES = {
    "AEGPOCLI": "cli.lightning_cli",
    "AEGPOModule": "aegpo_module",
    "AEGPOTrainer": "cli.trainer",
    "AutoencoderModule": "autoencoder_module",
    "FlowMatchingModule": "flow_matching_module",
}

__all__ = [
    "AEGPOCLI",
    "AEGPOModule",
    "AEGPOTrainer",
    "AutoencoderModule",
    "FlowMatchingModule",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
