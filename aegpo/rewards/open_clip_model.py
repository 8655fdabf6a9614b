"""Where an open_clip model comes from, checked before it is loaded, and its loading."""

from __future__ import annotations

import difflib
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

BUNDLED = {"shapes": Path(__file__).parent.parent / "shapes" / "clip"}
"""Folders that come with the package, by the name that stands for them."""

CONFIG = "open_clip_config.json"
WEIGHTS = ("*.safetensors", "*.bin", "*.pth")
"""What open_clip takes for the weights in a folder."""


@dataclass(frozen=True)
class OpenCLIPSource:
    """A model as `open_clip.create_model` takes it.

    Args:
        name: An architecture that open_clip knows, "local-dir:" and a folder, or "hf-hub:" and an
            id.
        pretrained: Checkpoint path or tag of an architecture; None where the name has weights.
    """

    name: str
    pretrained: str | None = None


def find_open_clip(model: str, pretrained: str | None) -> OpenCLIPSource:
    """Says what `model` and `pretrained` mean; downloads nothing.

    Args:
        model: "shapes", a folder with an open_clip_config.json, weights and, unless the model uses
            CLIP's own, the tokenizer's files; "hf-hub:owner/name", whose repository has the same;
            an open_clip model config as a JSON file; or an architecture that open_clip knows.
        pretrained: For an architecture or a JSON file: a checkpoint, or one of open_clip's tags.

    Returns:
        The source.

    Raises:
        FileNotFoundError: If a folder, its parts or a file is missing.
        ValueError: If a name or tag is unknown, or weights are named twice or not at all.
    """
    folder = BUNDLED.get(model) or Path(model.removeprefix("local-dir:")).expanduser()
    if model.startswith("hf-hub:") or model in BUNDLED or folder.is_dir():
        if pretrained is not None:
            raise ValueError(
                f"model={model!r} brings its own weights; leave out pretrained={pretrained!r}"
            )
        if model.startswith("hf-hub:"):
            return OpenCLIPSource(model)
        _check_folder(folder)
        return OpenCLIPSource(f"local-dir:{folder}")
    name = _register(folder) if folder.suffix == ".json" else _known_architecture(model)
    return OpenCLIPSource(name, _known_weights(name, pretrained))


def load_open_clip(source: OpenCLIPSource, precision: str) -> tuple[Any, Any]:
    """Loads a model and its tokenizer on the CPU; a hub id or a tag may download.

    Args:
        source: From `find_open_clip`.
        precision: open_clip's "fp32", "bf16" or "fp16".

    Returns:
        The model, in evaluation mode, without gradients; and the tokenizer, texts to (N, S) int64.

    Raises:
        ValueError: If the weights or the config do not load, or ask for foreign code.
    """
    import open_clip
    from safetensors import SafetensorError

    # OpenAI's weights were trained with another activation than the config of the same name has.
    tag = open_clip.get_pretrained_cfg(source.name, source.pretrained) if source.pretrained else {}
    try:
        config = open_clip.get_model_config(source.name)
        if (config["text_cfg"].get("tokenizer_kwargs") or {}).get("trust_remote_code"):
            raise ValueError("its tokenizer asks for trust_remote_code, which is never given")
        with torch.random.fork_rng(devices=[]):  # the first weights are drawn, then replaced
            model = open_clip.create_model(
                source.name,
                source.pretrained,
                precision=precision,
                force_quick_gelu=bool(tag.get("quick_gelu")),
                require_pretrained=True,
                weights_only=True,
            )
        tokenizer = open_clip.get_tokenizer(source.name)
    except (
        *(RuntimeError, OSError, ValueError, KeyError, TypeError, AssertionError),
        *(pickle.UnpicklingError, SafetensorError),
    ) as error:
        reason = str(error).strip().split("\n")[0]
        weights = f" with pretrained={source.pretrained!r}" if source.pretrained else ""
        raise ValueError(
            f"could not load the open_clip model {source.name}{weights} ({reason}); give weights "
            "of this architecture, or check the network if they have to be fetched"
        ) from error
    return model.eval().requires_grad_(False), tokenizer


def _check_folder(folder: Path) -> None:
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(
            f"{folder} is no open_clip model: it has no {CONFIG}; give a folder that has one, or "
            "train the bundled one with configs/shapes_clip.yaml"
        )
    if not any(next(folder.glob(pattern), None) for pattern in WEIGHTS):
        raise FileNotFoundError(
            f"{folder} has no weights; put an open_clip_model.safetensors there"
        )


def _register(file: Path) -> str:
    """Makes a JSON config known to open_clip, under the file's name."""
    import open_clip

    if not file.is_file():
        raise FileNotFoundError(f"model={str(file)!r} does not exist; give an open_clip config")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"model={str(file)!r} is not valid JSON: {error}") from error
    if not isinstance(config, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= set(config):
        raise ValueError(
            f"model={str(file)!r} must have the keys embed_dim, vision_cfg and text_cfg"
        )
    if open_clip.get_model_config(file.stem) not in (None, config):
        raise ValueError(
            f"open_clip has another architecture named {file.stem!r}; rename {str(file)!r}"
        )
    open_clip.add_model_config(file)
    return file.stem


def _known_architecture(model: str) -> str:
    import open_clip

    if "/" in model or model.startswith("local-dir:"):
        raise FileNotFoundError(
            f"model={model!r} is no folder here; give a folder with an {CONFIG}, or "
            "hf-hub:owner/name to fetch one"
        )
    known = open_clip.list_models()
    if model not in known:
        near = difflib.get_close_matches(model, known) or ["ViT-L-14", "ViT-H-14"]
        raise ValueError(
            f"open_clip knows no model={model!r}; give an architecture such as {', '.join(near)}, "
            f"a folder with an {CONFIG}, or one of {', '.join(BUNDLED)}"
        )
    return model


def _known_weights(name: str, pretrained: str | None) -> str:
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    accepted = "give a checkpoint" + (f", or one of open_clip's: {', '.join(tags)}" if tags else "")
    if pretrained is None:
        raise ValueError(f"model={name!r} needs pretrained weights; {accepted}")
    if open_clip.is_pretrained_cfg(name, pretrained):
        return pretrained
    file = Path(pretrained).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"pretrained={pretrained!r} is no file and no tag; {accepted}")
    return str(file)
