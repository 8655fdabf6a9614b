"""What a run is made of, as somebody says it, and the shipped configs that this comes to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from aegpo.utilities.files import read_utf8
from lightning_modules.arguments.messages import UserError, did_you_mean
from lightning_modules.arguments.shipped import shipped_names

SHAPES = "shapes"
OWN = "file"
"""The reward that is written as a file to fill in."""
OF_THE_RECIPE = "shapes"
"""The reward of the bundled model's own recipe."""
WITH_METADATA = ("geneval", "ocr")
"""Rewards that read what their own prompts carry with them."""
KINDS = {
    "StableDiffusionPipeline": "sd15",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd35_medium",
    "FluxPipeline": "flux1_dev",
}
"""The recipe by the class of a saved pipeline."""
LARGE = 75
"""GB from which a card counts as one of 80."""
MACHINE = 8
"""GPUs of one machine at most."""


def models() -> list[str]:
    """Names of the models that there is a recipe for."""
    return [SHAPES, *_inside("models/")]


def rewards() -> list[str]:
    """Names of the rewards that there is a config for."""
    return _inside("rewards/")


def default_reward(model: str) -> str:
    """The reward that is offered first for a model."""
    return OF_THE_RECIPE if _plain(model) == SHAPES else "pickscore"


def default_gpus(model: str) -> int:
    """The bundled model needs none."""
    return 0 if _plain(model) == SHAPES else 1


@dataclass(frozen=True)
class Choice:
    """A run as it was asked for.

    Attributes:
        name: Of the run.
        recipe: Name of the model's config.
        pretrained: Folder of a pipeline in place of the recipe's; None for that.
        reward: Name of the reward's config, `OWN`, or `OF_THE_RECIPE`.
        prompts: The user's file, None for some to begin with.
        gpus: Their number, 0 for the CPU.
        memory: GB of each.
    """

    name: str
    recipe: str
    pretrained: str | None
    reward: str
    prompts: Path | None
    gpus: int
    memory: int

    @classmethod
    def of(cls, name: str, model: str, reward: str, prompts: str, gpus: int, memory: int) -> Choice:
        """Check what was asked for, all of it text or numbers as typed.

        Args:
            name: Of the run.
            model: One of the shipped recipes' names, or a folder of a pipeline.
            reward: One of the offered rewards' names, `file` for one's own.
            prompts: A file of prompts; empty for those of the recipe.
            gpus: How many there are, 0 for the CPU.
            memory: Of each of them, in GB.

        Returns:
            The choice.

        Raises:
            UserError: If something is not there, or does not go together.
        """
        recipe, pretrained = _recipe(model)
        if reward not in (*rewards(), OWN) and (reward, recipe) != (OF_THE_RECIPE, SHAPES):
            known = (*rewards(), OWN)
            raise UserError(
                f"there is no reward {reward!r}{did_you_mean(reward, known)} "
                f"(rewards: {', '.join(known)})"
            )
        file = Path(prompts).expanduser() if prompts else None
        if file is not None and not file.is_file():
            raise UserError(f"--prompts {prompts} is no file; give one with a prompt on each line")
        if file is not None and reward in WITH_METADATA and file.suffix == ".txt":
            raise UserError(
                f"the reward {reward} reads what its prompts carry with them, and a .txt file has "
                "none of that; give a .jsonl file (docs/rewards.md), or leave --prompts out"
            )
        two = gpus == 2 * MACHINE and memory >= LARGE and recipe != SHAPES
        if gpus < 0 or (gpus > MACHINE and not two):
            raise UserError(
                f"--gpus {gpus}; give 0 to {MACHINE}, or {2 * MACHINE} of 80 GB in two machines "
                "(docs/distributed.md for others)"
            )
        return cls(name, recipe, pretrained, reward, file, gpus, memory)

    @property
    def layers(self) -> list[str]:
        """Names of the shipped configs, in their order."""
        if self.recipe == SHAPES:
            return [SHAPES, *self._reward_layer]
        return [f"models/{self.recipe}", *self._reward_layer, *self._hardware]

    @property
    def _reward_layer(self) -> list[str]:
        return [] if self.reward in (OWN, OF_THE_RECIPE) else [f"rewards/{self.reward}"]

    @property
    def _hardware(self) -> list[str]:
        if self.gpus == 0:
            return ["hardware/cpu"]
        large = self.memory >= LARGE
        if large and self.gpus >= MACHINE:
            return [f"hardware/{'2x8' if self.gpus > MACHINE else '8'}x80gb"]
        quantized = self.recipe == "flux1_dev" and self.memory < LARGE // 2
        return [
            "hardware/1x80gb" if large else "hardware/1x24gb",
            *(["hardware/quantized"] if quantized else []),
        ]

    @property
    def has_own_number(self) -> bool:
        """Whether no hardware file has this number of GPUs: it is laid over that of one."""
        several = 1 < self.gpus < MACHINE or (self.gpus == MACHINE and self.memory < LARGE)
        return several and self.recipe != SHAPES

    @property
    def has_own_prompts(self) -> bool:
        """Whether there is a prompt file: all rewards but some read any prompt."""
        return self.prompts is not None or self.reward not in WITH_METADATA


def _recipe(model: str) -> tuple[str, str | None]:
    """The recipe of a model, and the folder of its pipeline if it is the user's."""
    if _plain(model) in models():
        return _plain(model), None
    short = [name for name in models() if name.startswith(_plain(model))]
    if len(short) == 1 and model:  # flux
        return short[0], None
    index = Path(model).expanduser() / "model_index.json"
    if not index.is_file():
        raise UserError(
            f"there is no model {model!r}{did_you_mean(_plain(model), models())} (models: "
            f"{', '.join(models())}; or the folder of a pipeline, with its model_index.json)"
        )
    try:
        kind = json.loads(read_utf8(index, str(index))).get("_class_name")
    except ValueError as error:
        raise UserError(f"{index} is not valid JSON") from error
    if kind not in KINDS:
        raise UserError(
            f"{model} is a {kind}, for which there is no recipe (but for {', '.join(KINDS)}); "
            "docs/policies.md says how to write model.policy"
        )
    return KINDS[kind], str(index.parent.absolute())


def _plain(model: str) -> str:
    return model.lower().replace("-", "_").replace(".", "")


def _inside(folder: str) -> list[str]:
    return [name.removeprefix(folder) for name in shipped_names() if name.startswith(folder)]
