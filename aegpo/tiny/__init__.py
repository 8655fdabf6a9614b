"""Tiny random pipelines of the real diffusers classes, to try a config or a machine with.

A few hundred kilobytes each. Every builder depends on its seed alone and leaves torch's global
random state as it found it. Images mean nothing; whatever trains on them does what it does on the
published weights.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from aegpo.utilities.folders import published

TINY = "tiny"
"""What a config says in place of a pipeline, for `tiny_folder` of the policy's class."""
_BUILDERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "StableDiffusionPipeline": ("stable_diffusion", "tiny_sd15", {}),
    "StableDiffusionXLPipeline": ("stable_diffusion", "tiny_sdxl", {}),
    "StableDiffusion3Pipeline": ("stable_diffusion3", "tiny_sd3", {"dual_attention": True}),
    "FluxPipeline": ("flux", "tiny_flux", {}),
    "Flux2Pipeline": ("flux", "tiny_flux2", {}),
    "Flux2KleinPipeline": ("flux", "tiny_flux2_klein", {}),
    "QwenImagePipeline": ("qwen_image", "tiny_qwen_image", {}),
    "SanaPipeline": ("sana", "tiny_sana", {}),
    "ZImagePipeline": ("z_image", "tiny_z_image", {}),
}
"""By the pipeline's class: module, function and arguments of what makes a tiny one."""


def tiny_pipeline(class_name: str) -> Any:
    """Make a tiny pipeline.

    Args:
        class_name: Of the pipeline in diffusers, for instance ``FluxPipeline``.

    Returns:
        The pipeline, in evaluation mode; the same weights every time.

    Raises:
        ValueError: If there is none of this class.
    """
    if class_name not in _BUILDERS:
        raise ValueError(f"there is no tiny {class_name}; there are {', '.join(sorted(_BUILDERS))}")
    module, name, arguments = _BUILDERS[class_name]
    return getattr(import_module(f"{__name__}.{module}"), name)(**arguments)


def tiny_folder(class_name: str, above: str | Path = "runs/tiny_pipelines") -> Path:
    """Make a tiny pipeline in a folder, unless it is there.

    Args:
        class_name: Of the pipeline in diffusers.
        above: Folder of all of them.

    Returns:
        The folder's absolute path; all of it appears at once, so that several ranks may ask.

    Raises:
        ValueError: If there is none of this class.
    """
    folder = Path(above).absolute() / class_name
    index = folder / "model_index.json"
    if not index.is_file():
        try:
            with published(folder) as aside, _quietly():
                tiny_pipeline(class_name).save_pretrained(aside)
        except OSError:
            if not index.is_file():  # another rank was faster
                raise
    return folder


@contextmanager
def _quietly() -> Iterator[None]:
    """Inside, the libraries draw no bar for every part, nor name those that a pipeline lacks."""
    logger = logging.getLogger("diffusers.pipelines.pipeline_utils")
    level, drawn = logger.level, transformers_logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if drawn:
            transformers_logging.enable_progress_bar()
