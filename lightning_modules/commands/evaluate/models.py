"""The models of an evaluation: the base, checkpoints of this config, LoRA files, pipelines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open

from aegpo.evaluation.results import BASE
from aegpo.planning.policy_size import policy_of
from aegpo.policies.base import Policy
from aegpo.policies.diffusers_policy import DiffusersPolicy
from aegpo.policies.lora import ADAPTER
from aegpo.policies.trainable import require_fit
from aegpo.samplers import sampler_name
from aegpo.utilities.checkpoint_files import CheckpointFiles
from aegpo.utilities.hub import is_hub_id
from lightning_modules.commands.inside_trainer import Weights
from lightning_modules.policy_module import PolicyModule
from lightning_modules.training.resuming import (
    policy_tensors,
    require_own_checkpoint,
    require_same_make,
)

Kind = Literal["base", "checkpoint", "lora", "pipeline"]
LORA_FILE = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class Source:
    """A model that is to be evaluated.

    Args:
        name: As the table has it, and the folder of its images.
        kind: What it is.
        path: Where it is; empty for the base.
    """

    name: str
    kind: Kind
    path: str


def find_models(tuned: Sequence[str], checkpoint: str | None) -> list[Source]:
    """Say what is to be evaluated, the base first; nothing is loaded.

    Args:
        tuned: Each a path, or a name, an equals sign and a path.
        checkpoint: A checkpoint beside them.

    Returns:
        The models.

    Raises:
        FileNotFoundError: If one is not there.
        ValueError: If one is none, or two have one name.
    """
    sources = [Source(BASE, "base", "")]
    given = [f"tuned={checkpoint}"] if checkpoint is not None else []
    for text in [*given, *tuned]:
        name, equals, path = text.partition("=")
        if not equals:
            name, path = _short_name(text), text
        if not name or name != Path(name).name or name.startswith("."):
            raise ValueError(
                f"--tuned {text}: {name!r} is no name for a folder; give another: name=path"
            )
        sources.append(Source(name, _kind(path), path))
    names = [source.name for source in sources]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"--tuned: two models are called {twice!r}; give names: name=path")
    return sources


def _short_name(path: str) -> str:
    """The file's name, or the folder's above it where that says nothing."""
    place = Path(path)
    return place.stem if place.suffix in (".ckpt", ".safetensors") else place.name


def _kind(path: str) -> Kind:
    place = Path(path).expanduser()
    if place.is_file() and place.suffix == ".ckpt":
        return "checkpoint"
    if place.is_file() and place.suffix == ".safetensors":
        return "lora"
    if (place / "model_index.json").is_file():
        return "pipeline"
    if place.is_dir() and next(place.glob("*.safetensors"), None):
        return "lora"
    if not place.exists() and is_hub_id(path):
        return "pipeline"
    accepted = (
        "give a .ckpt file of aegpo fit, a folder or .safetensors file of a LoRA, or a pipeline's "
        "folder or hub id"
    )
    if not place.exists():
        raise FileNotFoundError(f"--tuned {path} does not exist; {accepted}")
    raise ValueError(f"--tuned {path} is no model; {accepted}")


@contextmanager
def loaded(
    source: Source, module: PolicyModule, weights: Weights, weights_only: bool | None
) -> Iterator[tuple[Policy, dict[str, Any]]]:
    """Inside, a model is ready to draw.

    Args:
        source: Which.
        module: The configured module, whose policy is the base and takes checkpoints.
        weights: Which weights of a checkpoint.
        weights_only: As for the loading of checkpoints.

    Yields:
        The policy, on the module's device, and what is known of the model.
    """
    if source.kind == "base":
        with module.policy.reference():
            yield module.policy, {}
        return
    if source.kind == "checkpoint":
        yield module.policy, _load_checkpoint(source.path, module, weights, weights_only)
        return
    with torch.device("cpu"):
        policy = _foreign(source, module)
    policy.to(module.device)
    yield policy, {}


def _load_checkpoint(
    path: str, module: PolicyModule, weights: Weights, weights_only: bool | None
) -> dict[str, Any]:
    """Give the module's policy the weights of a checkpoint; what is known of them."""
    saved = CheckpointFiles().load_checkpoint(path, weights_only=weights_only)
    require_own_checkpoint(saved)
    own = saved["aegpo"]
    sampler = {"evaluation_sampler": sampler_name(module.evaluation_sampler)}
    require_same_make(own.get("made_with", {}), module.policy.made_with | sampler)
    averaged = own.get("averaged") if weights == "ema" else None
    state = policy_tensors(saved["state_dict"]) if averaged is None else averaged
    require_fit(module.policy.trainable_state_dict(), state)
    module.policy.load_trainable_state_dict(state)
    return {"iteration": int(own["iteration"]), "averaged": averaged is not None}


def _foreign(source: Source, module: PolicyModule) -> Policy:
    """A policy of its own for weights that training here did not make."""
    factory: Any = module.policy_factory
    # What the run began from is part of what it exported, and would count twice.
    plain = {"lora_from": None} if policy_of(factory)[1].get("lora_from") else {}
    if source.kind == "pipeline":
        policy: Policy = factory(pretrained=source.path, **plain)
        if isinstance(policy, DiffusersPolicy) and not policy.full_finetuning:
            policy.trained.unload_lora()
        return policy
    policy = factory(**plain)
    if not isinstance(policy, DiffusersPolicy):
        raise ValueError(
            f"--tuned {source.path} is a LoRA of a diffusers pipeline, and the policy is a "
            f"{type(policy).__name__}"
        )
    if not policy.full_finetuning:
        policy.trained.unload_lora()
    _load_lora(policy, Path(source.path).expanduser())
    return policy


def _load_lora(policy: DiffusersPolicy, place: Path) -> None:
    """Load adapters as a user of diffusers does, and refuse what was not taken over.

    Diffusers says in a warning alone that a file has nothing for a model.
    """
    folder = place.parent if place.is_file() else place
    files = sorted(folder.glob("*.safetensors"))
    file = place if place.is_file() else folder / LORA_FILE
    if not file.is_file():
        if len(files) != 1:
            raise ValueError(f"{folder} holds several .safetensors files; name one of them")
        file = files[0]
    policy.pipeline.load_lora_weights(str(folder), weight_name=file.name, adapter_name=ADAPTER)
    with safe_open(str(file), framework="pt") as content:
        keys = list(content.keys())
    wanted = [key for key in keys if key.endswith("weight")]
    taken: dict[str, Any] = {}
    if getattr(policy.trained, "peft_config", None):
        taken = get_peft_model_state_dict(policy.trained, adapter_name=ADAPTER)
    if not taken or len(taken) < len([key for key in wanted if not key.startswith("text_")]):
        raise ValueError(
            f"{file} does not fit {type(policy.trained).__name__}: it holds {len(wanted)} weights, "
            f"of which the model took {len(taken)}; give a LoRA of this model"
        )
