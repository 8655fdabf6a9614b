"""A run in a few words: the settings by which TensorBoard's HParams tells it from others."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from aegpo.utilities.secrets import without_secrets
from lightning_modules.commands.configured_run import left_callbacks
from lightning_modules.commands.report.settings import changed_settings

Value = float | str | bool

ALWAYS = {
    "objective": "model.objective",
    "step_selector": "model.step_selector",
    "allocator": "model.allocator",
    "allocator.images_per_prompt": "model.allocator.images_per_prompt",
    "num_steps": "model.num_steps",
    "optimizer.lr": "model.optimizer.lr",
    "policy.lora_rank": "model.policy.lora_rank",
    "data.batch_size": "data.batch_size",
    "seed": "seed_everything",
}
"""Settings that are there also where they are a class's default, if the class has them."""
LEFT_OUT = {
    "advantage": "GroupRelative",
    "objective": "PolicyGradient",
    "previews": "none",
    "selection": "AllImages",
}
"""In place of parts that a config does not name: HParams takes no gap for a difference."""
_TRAINER = ("trainer.callbacks[", "trainer.max_epochs", "trainer.max_steps", "trainer.precision")
_ONLY_WATCH = (
    *("Checkpoint", "ProgressBar", "Logger", "Table", "Canary", "Alarm", "DecisionLog"),
    *("EvaluateByCost", "BudgetStop", "FreeCores"),
)
"""Endings of callbacks that change nothing of what an iteration learns."""
_LONGEST = 120
"""Characters of a value; what is beyond is a list that nobody reads in a table."""


def hyperparameters(config: Mapping[str, Any]) -> dict[str, Value]:
    """Say what a run is, and what it sets otherwise than the classes do by themselves.

    Args:
        config: The resolved config: seed, trainer, model and data.

    Returns:
        Numbers, switches and texts by name; classes by their short names, without secrets, and
        without what only watches.
    """
    trainer = dict(config.get("trainer") or {})
    trainer["callbacks"] = [
        one for one in left_callbacks(trainer) if not one["class_path"].endswith(_ONLY_WATCH)
    ]
    config = without_secrets({**config, "trainer": trainer})
    found: dict[str, Value] = {
        _name(key): _value(text)
        for key, text in changed_settings(config).items()
        if key.startswith(("model.", "data.", *_TRAINER)) and not key.endswith("]")
    }
    names = [one["class_path"].rpartition(".")[2] for one in trainer["callbacks"]]
    found["callbacks"] = _value(", ".join(names) or "none")
    for name, key in ALWAYS.items():
        value = _at(config, key)
        if isinstance(value, Mapping):
            value = value.get("class_path")
        if value is not None:
            found[name] = _value(value if isinstance(value, str) else json.dumps(value))
    return {**LEFT_OUT, **{k: v for k, v in found.items() if v != "null"}}


def _name(key: str) -> str:
    """A key in letters that every logger takes, without what is the same for most."""
    key = re.sub(r"^trainer\.callbacks\[(.+?)\]", r"callbacks.\1", key).removeprefix("model.")
    return re.sub(r"[^\w.]+", ".", key).strip(".")


def _value(text: str) -> Value:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    if isinstance(value, bool | int | float):
        return value
    if re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", text):  # a class
        return text.rpartition(".")[2]
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _at(config: Mapping[str, Any], key: str) -> Any:
    """A setting by its dotted name, `init_args` left out of it; None where there is none."""
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get("init_args") or {} if "class_path" in value else value
        value = value.get(part)
    return value
