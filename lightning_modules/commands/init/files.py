"""The files that ``aegpo init`` writes, as text."""

from __future__ import annotations

from typing import Any

import yaml

from aegpo.utilities.files import read_utf8
from lightning_modules.arguments.shipped import FOLDER
from lightning_modules.commands.init.choices import (
    OF_THE_RECIPE,
    OWN,
    SHAPES,
    Choice,
)

CONFIG = "config.yaml"
REWARD = "my_reward.py"
_OF_THE_POLICY = {
    "lora_rank": "of the adapters, which are what is trained",
    "guidance_scale": "in training and in evaluation",
    "resolution": "pixels; memory and time go by it",
}
_OF_THE_MODULE = {
    "num_steps": "denoising steps of the images that are trained on",
    "evaluation_steps": "and of the held-out ones",
}
_SHAPES_PROMPTS = [
    f"a {color} {shape}"
    for color in ("red", "green", "blue", "yellow", "magenta", "cyan")
    for shape in ("circle", "square", "triangle", "cross")
]
_PROMPTS = [
    f"{what} {where}"
    for what in ("a red fox", "two sailing boats", "an old wooden chair", "a bowl of green apples")
    for where in (
        "in the morning mist",
        "on a snowy mountain",
        "painted in watercolor",
        "in front of a brick wall",
        "under a night sky",
    )
]
_REWARD = '''\
"""A reward of your own: images and their prompts in, one number for each image out.

    aegpo check-reward my_reward.MyReward

tries it out: form, range, broken input, the same scores in any batch.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from aegpo.rewards import Reward


class MyReward(Reward):
    """How bright an image is. Put in its place what you want more of."""

    range = (0.0, 1.0)  # lowest and highest score; None where there are no bounds

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        """Score images (N, 3, H, W) in [0, 1]; higher is better, NaN is a missing score."""
        return images.mean(dim=(1, 2, 3))
'''


def files_of(choice: Choice) -> dict[str, str]:
    """Write down a choice.

    Args:
        choice: What was asked for.

    Returns:
        The content of each file by its name.
    """
    files = {CONFIG: _config(choice)}
    if choice.prompts is not None:
        files[_prompt_file(choice)] = read_utf8(choice.prompts, str(choice.prompts))
    elif choice.has_own_prompts:
        lines = _SHAPES_PROMPTS if choice.recipe == SHAPES else _PROMPTS
        files[_prompt_file(choice)] = "\n".join(lines) + "\n"
    if choice.reward == OWN:
        files[REWARD] = _REWARD
    return files


def commands_of(choice: Choice) -> list[str]:
    """The commands that go on from there, in the folder.

    Args:
        choice: What was asked for.

    Returns:
        One line each.
    """
    configs = " ".join(f"--config {name}" for name in (*choice.layers, CONFIG))
    tried = ["aegpo check-reward my_reward.MyReward"] if choice.reward == OWN else []
    return [
        *tried,
        f"aegpo plan {configs}      # what it will do and cost",
        f"aegpo doctor {configs}    # does a step train here?",
        f"aegpo fit {configs}",
    ]


def said(choice: Choice) -> str:
    """Say a choice in a few words.

    Args:
        choice: What was asked for.

    Returns:
        Model, reward and machine.
    """
    rewards = {OWN: "a reward of your own", OF_THE_RECIPE: "its own rewards"}
    place = "the CPU" if choice.gpus == 0 else f"{choice.gpus} GPU" + "s" * (choice.gpus > 1)
    memory = f" of {choice.memory} GB" if choice.gpus else ""
    model = choice.pretrained or choice.recipe
    return f"{model} for {rewards.get(choice.reward, choice.reward)}, on {place}{memory}"


def _prompt_file(choice: Choice) -> str:
    return f"prompts{choice.prompts.suffix if choice.prompts else '.txt'}"


def _config(choice: Choice) -> str:
    lines = [
        f"# {choice.name}: {said(choice)}. Written by `aegpo init`; yours to change.",
        "# In this folder:",
        *(f"#   {line}" for line in commands_of(choice)),
        f"# This file is laid over {_listed(choice.layers)} of the package, and says what is "
        "changed most often.",
        "# All else is theirs, and so are the values here until you change them; put "
        "`--print_config` behind `fit` to see it.",
        *_trainer(choice),
        *_model(choice),
        *_data(choice),
    ]
    return "\n".join(lines) + "\n"


def _listed(names: list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _trainer(choice: Choice) -> list[str]:
    lines = [
        "trainer:",
        f"  logger: {{init_args: {{name: {_quoted(choice.name)}}}}}   # the folder in runs/",
    ]
    if choice.recipe == SHAPES and choice.gpus:
        lines += ["  accelerator: gpu", f"  devices: {choice.gpus}"]
    elif choice.has_own_number:
        lines += [f"  devices: {choice.gpus}", "  strategy: ddp"]
    epochs = _recipe(choice, "trainer", "max_epochs")
    every = _recipe(choice, "trainer", "check_val_every_n_epoch")
    return [
        *lines,
        _line(2, f"max_epochs: {epochs}", "each of data.batches_per_epoch iterations"),
        _line(2, f"check_val_every_n_epoch: {every}", "how often the held-out prompts are scored"),
    ]


def _model(choice: Choice) -> list[str]:
    lines = ["model:", "  init_args:"]
    if choice.reward == OWN:
        path = f"{REWARD.removesuffix('.py')}.MyReward"
        lines.append(_line(4, f"reward: {{class_path: {path}}}", f"the class in {REWARD}"))
    lines += ["    policy:", "      init_args:"]
    if choice.pretrained is not None and choice.gpus:
        lines.append(f"        pretrained: {_quoted(choice.pretrained)}")
    elif choice.gpus == 0 and choice.recipe != SHAPES:
        lines.append("        # a tiny random model, to try things out: see hardware/cpu")
    for name, meaning in _OF_THE_POLICY.items():
        value = _recipe(choice, "model", "init_args", "policy", "init_args", name)
        if value is not None:
            lines.append(_line(8, f"{name}: {value}", meaning))
    rate = _recipe(choice, "model", "init_args", "optimizer", "init_args", "lr")
    lines.append(_line(4, f"optimizer: {{init_args: {{lr: {rate}}}}}", "learning rate"))
    for name, meaning in _OF_THE_MODULE.items():
        value = _recipe(choice, "model", "init_args", name)
        lines.append(_line(4, f"{name}: {value}", meaning))
    return lines


def _data(choice: Choice) -> list[str]:
    lines = ["data:", "  init_args:"]
    if choice.has_own_prompts:
        file = _prompt_file(choice)
        lines.append(_line(4, f"train_file: {file}", "a tenth of it is held out, never trained on"))
        lines.append(_line(4, "val_file: auto", "or another file of prompts to hold out"))
    prompts = _recipe(choice, "data", "init_args", "batch_size")
    if choice.has_own_number:
        prompts *= choice.gpus
    images = _recipe(choice, "data", "init_args", "val_images")
    return [
        *lines,
        _line(4, f"batch_size: {prompts}", "prompts an iteration, of all GPUs together"),
        _line(4, f"val_images: {images}", "held-out images that are scored each time"),
    ]


def _line(indent: int, setting: str, meaning: str) -> str:
    return f"{' ' * indent + setting:<43} # {meaning}"


def _recipe(choice: Choice, *keys: str) -> Any:
    """What the shipped configs come to at some keys."""
    found = None
    for name in choice.layers:
        file = (FOLDER / name).with_suffix(".yaml")
        value: Any = yaml.safe_load(read_utf8(file, name))
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        found = found if value is None else value
    return found


def _quoted(text: str) -> str:
    return yaml.safe_dump(text, default_style='"', width=10_000).strip()
