"""Where an open_clip model comes from, checked before it is loaded, and its loading."""

from __future__ import annotations

import difflib
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from aegpo.utilities.hub import explained

BUNDLED = {"shapes": Path(str(files("aegpo.shapes"))) / "clip"}
"""Folders that come with the package, by the name that stands for them."""

CONFIG = "open_clip_config.json"
KEYS = ("embed_dim", "vision_cfg", "text_cfg")
"""What a model's config has at least."""

WEIGHTS = ("*.safetensors", "*.bin", "*.pth")
"""What open_clip takes for the weights in a folder."""

FITS = {"shortest": "crop", "longest": "pad", "squash": "squash"}
"""What `clip_pixels` calls open_clip's resize modes."""


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


def load_open_clip(source: OpenCLIPSource) -> tuple[Any, Any]:
    """Loads a model and its tokenizer on the CPU in fp32; a hub id or a tag may download.

    Args:
        source: From `find_open_clip`.

    Returns:
        The model; and the tokenizer, texts to (N, S) int64.

    Raises:
        FileNotFoundError: If something has to be fetched and cannot be.
        PermissionError: If the repository is gated.
        ValueError: If the weights or the config do not load, or ask for foreign code.
    """
    import open_clip

    if source.pretrained:
        given, argument = source.pretrained, "pretrained"
    else:
        given, argument = source.name.split(":", 1)[1], "model"
    # OpenAI's weights were trained with another activation than the config of the same name has.
    tag = open_clip.get_pretrained_cfg(source.name, source.pretrained) if source.pretrained else {}
    with explained(given, argument):
        config = open_clip.get_model_config(source.name)
        if not set(KEYS) <= set(config):
            raise ValueError(f"its config must have the keys {', '.join(KEYS)}")
        if (config["text_cfg"].get("tokenizer_kwargs") or {}).get("trust_remote_code"):
            raise ValueError("its tokenizer asks for trust_remote_code, which is never given")
        try:
            # Not load_exactly: open_clip renames what it knows from other layouts of checkpoints.
            # The first weights are drawn, on the default device, and then replaced.
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                model = open_clip.create_model(
                    source.name,
                    source.pretrained,
                    force_quick_gelu=bool(tag.get("quick_gelu")),
                    require_pretrained=True,
                    weights_only=True,
                )
        except (TypeError, AssertionError) as error:
            raise ValueError(f"open_clip cannot build its config: {error}") from error
        except pickle.UnpicklingError as error:
            raise ValueError("it is no checkpoint of tensors alone") from error
        return model, open_clip.get_tokenizer(source.name)


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
    if not isinstance(config, dict) or not set(KEYS) <= set(config):
        raise ValueError(f"model={str(file)!r} must have the keys {', '.join(KEYS)}")
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


def pixel_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Says how `clip_pixels` has to prepare images for a model.

    Args:
        config: A model's `visual.preprocess_cfg`, in open_clip's terms.

    Returns:
        The arguments of `clip_pixels` after the images.

    Raises:
        ValueError: If the model wants images that are not square, borders that are not black, or
            an unknown interpolation.
    """
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width or config["interpolation"] not in ("bicubic", "bilinear"):
        raise ValueError(
            f"the model wants images of {height}x{width} by {config['interpolation']} resizing; "
            "choose one for square images, bicubic or bilinear"
        )
    fit = FITS[config["resize_mode"]]
    if fit == "pad" and config["fill_color"] != 0:
        raise ValueError(
            f"the model wants borders of gray {config['fill_color']}; choose one with black borders"
        )
    names = ("mean", "std", "interpolation")
    return {"size": height, "fit": fit, **{name: config[name] for name in names}}
