"""``pretrained: tiny`` in a config: a random pipeline of the policy's class."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

_ASKED = "tiny"


def use_tiny_model(section: Namespace) -> None:
    """Put the folder of a tiny pipeline in the place of the word, and make it the first time.

    Args:
        section: A command's arguments as parsed.

    Raises:
        UserError: If there is no tiny pipeline of the policy's kind.
    """
    policy = section.get("model.init_args.policy")
    arguments = policy.get("init_args") if isinstance(policy, Namespace) else None
    if arguments is None or arguments.get("pretrained") != _ASKED or Path(_ASKED).exists():
        return
    from aegpo.tiny import tiny_folder  # diffusers, which no other config needs here
    from lightning_modules.arguments.messages import UserError

    module, _, name = str(policy.class_path).rpartition(".")
    kind: Any = getattr(import_module(module), name)
    try:
        arguments["pretrained"] = str(tiny_folder(kind.pipeline_class.__name__))
    except (AttributeError, ValueError) as error:
        raise UserError(f"model.policy.pretrained=tiny: {error}") from error
