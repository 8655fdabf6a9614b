"""Where a pipeline comes from (hub id, folder, this package), checked before it is loaded."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    BitsAndBytesConfig,
    ConfigMixin,
    DiffusionPipeline,
    ModelMixin,
    PipelineQuantizationConfig,
)
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from aegpo.utilities.hub import explained, is_hub_id

Quantization = Literal["nf4", "int8"]
"""How frozen weights may be stored: 4 bits (QLoRA, arXiv 2305.14314) or 8 (arXiv 2208.07339)."""

BUNDLED = {"shapes": Path(__file__).parent.parent / "shapes" / "base"}
"""Pipelines that come with the package, by the name that stands for them."""


def find_pipeline(pretrained: str) -> str | Path:
    """Says what a `pretrained` argument means.

    Args:
        pretrained: A bundled name ("shapes"), a folder, or a hub id ("owner/name").

    Returns:
        An existing folder as a Path, or a hub id as a str.

    Raises:
        FileNotFoundError: If it is none of these.
    """
    if pretrained in BUNDLED:
        folder = BUNDLED[pretrained]
        if not (folder / "model_index.json").is_file():
            raise FileNotFoundError(
                f"the bundled pipeline {pretrained!r} is not in this installation ({folder}); "
                "train it with configs/shapes_vae.yaml and configs/shapes_pretrain.yaml, or give "
                "another folder or hub id"
            )
        return folder
    folder = Path(pretrained).expanduser()
    if folder.exists():
        return folder
    if is_hub_id(pretrained):
        return pretrained
    raise FileNotFoundError(
        f"pretrained={pretrained!r} is neither a folder nor a hub id; give a folder with a "
        f"model_index.json, an id such as owner/name, or one of {', '.join(sorted(BUNDLED))}"
    )


def read_model_index(
    source: str | Path, pipeline: type[DiffusionPipeline], unused: Collection[str] = ()
) -> dict[str, Any]:
    """Reads which parts a pipeline has, and refuses another kind of pipeline.

    Args:
        source: Folder or hub id, from `find_pipeline`.
        pipeline: The class that the caller can drive.
        unused: Parts that will not be loaded, and whose folders may be missing.

    Returns:
        The content of model_index.json; the value of a part that is absent is [None, None].

    Raises:
        FileNotFoundError: If there is no model_index.json, a part's folder is missing, or the hub
            is out of reach.
        PermissionError: If the repository is gated.
        ValueError: If the file is unreadable or names another class.
    """
    accepted = f"give the folder or hub id of a saved {pipeline.__name__}"
    if isinstance(source, Path):
        index = _local_index(source, accepted)
    else:
        with explained(source, "pretrained", "model_index.json"):
            index = pipeline.load_config(source)
    if index.get("_class_name") != pipeline.__name__:
        raise ValueError(f"{source} is a {index.get('_class_name')}; {accepted}")
    if isinstance(source, Path):
        parts = [name for name, part in index.items() if isinstance(part, list) and any(part)]
        absent = [n for n in parts if n not in unused and not (source / n).is_dir()]
        if absent:
            raise FileNotFoundError(f"{source} lacks the folders {absent}; {accepted}")
    return index


def _local_index(folder: Path, accepted: str) -> dict[str, Any]:
    file = folder / "model_index.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} is no pipeline: it has no {file.name}; {accepted}")
    try:
        index: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON; {accepted}") from error
    return index


def load_pipeline(
    source: str | Path,
    pipeline: type[DiffusionPipeline],
    dtype: torch.dtype,
    optional: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    quantized: Mapping[str, Quantization] | None = None,
) -> DiffusionPipeline:
    """Loads a pipeline on the CPU, after a look at its index.

    Args:
        source: Folder or hub id, from `find_pipeline`.
        pipeline: The class that the caller can drive.
        dtype: Of all weights.
        optional: Parts whose absence is no error, for instance SD3's T5.
        options: Further arguments of the pipeline; None for a part leaves it unloaded.
        quantized: Parts whose frozen weights are stored in fewer bits; they land on the GPU.

    Returns:
        The pipeline, in evaluation mode, without a progress bar.

    Raises:
        FileNotFoundError: If a part is missing.
        ValueError: If it is another kind of pipeline, or quantization is not possible here.
    """
    options = options or {}
    index = read_model_index(source, pipeline, options)
    absent: dict[str, Any] = {part: None for part in optional if not any(index.get(part) or [None])}
    if quantized:
        absent["quantization_config"] = _quantization(quantized, dtype)
    try:
        with _on_the_cpu(), quietly(source):
            loaded: DiffusionPipeline = pipeline.from_pretrained(
                source,
                torch_dtype=dtype,
                use_safetensors=True,
                local_files_only=isinstance(source, Path),
                **absent,
                **options,
            )
    except (RuntimeError, ImportError) as error:
        if not quantized:
            raise
        raise ValueError(
            f"quantize needs a GPU and bitsandbytes (pip install 'aegpo[bitsandbytes]'): {error}"
        ) from error
    loaded.set_progress_bar_config(disable=True)
    for log in map(logging.getLogger, (pipeline.__module__, *_SPEAKERS)):
        if not any(isinstance(one, _OfUse) for one in log.filters):
            log.addFilter(_OfUse())
    for part in loaded.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return loaded


@contextmanager
def _on_the_cpu() -> Iterator[None]:
    """Inside, networks are made on the CPU, and global random numbers are left alone.

    Lightning builds models with the GPU as torch's default device. What the libraries make there
    would stay there, also what is to be offloaded; and some draw weights before they read them.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        yield


@contextmanager
def quietly(source: str | Path) -> Iterator[None]:
    """Inside, the libraries draw no bar for every part of a pipeline that lies in a folder.

    What may be downloaded keeps its bars: transformers takes huggingface_hub's away with its own.
    Nor do they advise to call an argument `dtype`, a name that the oldest supported diffusers does
    not know.
    """
    libraries = [diffusers_logging, transformers_logging] if isinstance(source, Path) else []
    drawn = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in drawn:
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)
            yield
    finally:
        for library in drawn:
            library.enable_progress_bar()


def _quantization(parts: Mapping[str, Quantization], dtype: torch.dtype) -> Any:
    """What diffusers wants to know to load some parts quantized."""
    settings: dict[str, Any] = {}
    for name, kind in parts.items():
        if kind == "nf4":
            settings[name] = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
            )
        else:
            settings[name] = BitsAndBytesConfig(load_in_8bit=True)
    return PipelineQuantizationConfig(quant_mapping=settings)


def read_part_config(source: str | Path, model: type[ConfigMixin], name: str) -> dict[str, Any]:
    """Reads the configuration of one part, so that arguments can be checked before any loading.

    Args:
        source: Folder or hub id, from `find_pipeline`.
        model: Class of the part.
        name: Name of the part: "transformer", "unet" or "scheduler".

    Returns:
        The content of the part's configuration file.
    """
    config: dict[str, Any] = model.load_config(
        source, subfolder=name, local_files_only=isinstance(source, Path)
    )
    return config


def load_denoiser(source: str | Path, model: type[ModelMixin], name: str) -> ModelMixin:
    """Loads a frozen fp32 denoiser on the CPU, the reference of full fine-tuning.

    Args:
        source: Folder or hub id, from `find_pipeline`.
        model: Its class.
        name: The pipeline's part: "transformer" or "unet".

    Returns:
        The denoiser, in evaluation mode.
    """
    with _on_the_cpu(), quietly(source):
        denoiser: ModelMixin = model.from_pretrained(
            source,
            subfolder=name,
            torch_dtype=torch.float32,
            use_safetensors=True,
            local_files_only=isinstance(source, Path),
        )
    return denoiser.requires_grad_(False).eval()


_SPEAKERS = (
    "transformers.tokenization_utils_base",
    "diffusers.loaders.lora_base",
    "diffusers.loaders.peft",
    "diffusers.pipelines.pipeline_utils",
)
_NO_USE = (
    "Token indices sequence length is longer",  # and is cut by diffusers, which says so
    "No LoRA keys associated to",  # text encoders have none; whether a model's fit is checked here
    "=None of type <class 'NoneType'> cannot be saved",  # an optional part that is not there
)


class _OfUse(logging.Filter):
    """Leaves out what the libraries say of nothing, and of texts that are cut all but the first."""

    def __init__(self) -> None:
        super().__init__()
        self._said = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is to be seen."""
        text = record.getMessage()
        if any(part in text for part in _NO_USE):
            return False
        if "input was truncated" not in text:
            return True
        first, self._said = not self._said, True
        if first:
            record.msg, record.args = f"{text} (more such prompts are not named)", ()
        return first
