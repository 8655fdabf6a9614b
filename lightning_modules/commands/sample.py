"""`aegpo sample`: draw prompts from a checkpoint beside the base, score and write them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from rich.console import Console
from torch import Tensor

from aegpo.noise import KeyedNoise
from aegpo.prompts import PromptBatch
from aegpo.prompts.files import read_prompts
from aegpo.rewards.base import Reward
from aegpo.rewards.guarded import guarded_scores
from aegpo.rollout.deterministic import deterministic_rollout
from aegpo.utilities.checks import require_positive
from aegpo.utilities.files import append_line
from aegpo.utilities.folders import check_new_folder
from aegpo.utilities.images import save_picture, save_png, side_by_side
from aegpo.utilities.tables import finite
from lightning_modules.commands.configured_run import ConfiguredRun
from lightning_modules.commands.inside_trainer import Weights, inside_trainer
from lightning_modules.policy_module import PolicyModule

GRID_PROMPTS = 32
"""Prompts that the grid shows; the files have all of them."""


def sample(
    trainer: Trainer,
    model: LightningModule,
    ckpt_path: str | None = None,
    weights_only: bool | None = None,
    *,
    out: str,
    weights: Weights = "ema",
    prompts: list[str] | None = None,
    prompt_file: str | None = None,
    column: str | None = None,
    images_per_prompt: int = 4,
    num_steps: int | None = None,
    seed: int = 0,
    run: ConfiguredRun | None = None,
) -> None:
    """Draw prompts from a checkpoint beside the base, with the scores of all rewards.

    Args:
        trainer: A trainer of one process.
        model: The configured module.
        ckpt_path: Checkpoint to draw from: a file, or last for the run's last one; the base
            alone without it.
        weights_only: Whether to load that checkpoint without unpickling objects.
        out: Folder of the pictures, new or empty.
        weights: The averaged weights, if the run kept an average, or the last ones.
        prompts: Texts to draw, as they are. One word that starts with two dashes is given by
            --prompts=--word.
        prompt_file: A .txt, .jsonl or .csv file of prompts instead, or a bundled
            split, such as shapes:heldout.
        column: Field that holds the prompt in .jsonl and .csv files; that of the run's data by
            default.
        images_per_prompt: Images per prompt.
        num_steps: Denoising steps; the config's by default.
        seed: Of the noise that the images start from.
        run: The run as configured.

    Raises:
        ValueError: If the module has no policy, there are no prompts, or the folder is taken.
    """
    if not isinstance(model, PolicyModule):
        raise ValueError(f"aegpo sample draws from a policy, and {type(model).__name__} has none")
    if (prompts is None) == (prompt_file is None):
        raise ValueError("give what to draw: either --prompts 'a red circle' ... or --prompt_file")
    require_positive("images_per_prompt", images_per_prompt)
    if num_steps is not None:
        require_positive("num_steps", num_steps)
    folder = check_new_folder(out)
    records: list[dict[str, Any]] = (
        [{"prompt": text} for text in prompts or []]
        if prompt_file is None
        else read_prompts(prompt_file, column or _column(run))
    )
    texts = [record.pop("prompt") for record in records]
    if not texts:
        raise ValueError("--prompts is empty; give at least one text")
    batch = PromptBatch(texts, torch.arange(len(texts), device="cpu"), records)
    model.prefers_averaged = weights == "ema"
    steps = num_steps or model.evaluation_steps
    noise = KeyedNoise(seed).fixed()

    def work(batch: PromptBatch) -> None:
        policy = model.policy
        models: dict[str, Callable[[], AbstractContextManager[None]]] = {"base": nullcontext}
        if ckpt_path is not None:
            models = {"base": policy.reference, "tuned": nullcontext}
        folder.mkdir(parents=True, exist_ok=True)
        sampled = _Samples(folder, _ready(rewards, model.device), images_per_prompt)
        samples = policy.max_batch // policy.num_evaluations_per_sample
        at_once = max(1, samples // images_per_prompt)
        with Console().status("drawing") as status:
            for rows in torch.arange(len(batch), device="cpu").split(at_once):
                status.update(f"drawing prompt {int(rows[0]) + 1} of {len(batch)}")
                part = batch.select(rows)
                for name, context in models.items():
                    with context(), policy.at_resolution(model.evaluation_resolution):
                        images = deterministic_rollout(
                            policy,
                            part.prompts,
                            part.index,
                            steps,
                            noise,
                            images_per_prompt,
                            model.evaluation_sampler,
                        ).images
                    assert images is not None
                    facts = {"model": name, "steps": str(steps), "seed": str(seed)}
                    sampled.add(part, images, facts)
        sampled.write_grid()
        for line in sampled.summary():
            print(line)
        print(f"{out}: {len(batch)} prompts, {images_per_prompt} images each")

    # A reward that cannot be set up costs its scores here, not the pictures.
    with model.without_rewards() as rewards:
        inside_trainer(trainer, model, batch, work, ckpt_path, weights_only)


def _column(run: ConfiguredRun | None) -> str:
    """The field that the run's own prompts stand in."""
    data: Any = ({} if run is None else run.config.get("data")) or {}
    return str((data.get("init_args") or {}).get("column") or "prompt")


def _ready(rewards: Sequence[Reward], device: torch.device) -> list[Reward]:
    """Those rewards that can be set up."""
    ready = []
    for reward in rewards:
        try:
            reward.setup(device)
        except Exception as error:  # a user's reward may raise anything
            warnings.warn(f"reward {reward.name!r} is left out: {error}", stacklevel=2)
            continue
        ready.append(reward)
    return ready


class _Samples:
    """Writes pictures and their scores as they come, and remembers what the grid shows.

    Args:
        folder: Where to.
        rewards: What scores the pictures.
        count: Images per prompt.
    """

    def __init__(self, folder: Path, rewards: Sequence[Reward], count: int) -> None:
        self.folder, self.rewards, self.count = folder, rewards, count
        self.images: dict[str, list[Tensor]] = {}
        self.captions: dict[str, list[str]] = {}
        self.scores: dict[str, dict[str, list[float]]] = {}

    def add(self, batch: PromptBatch, images: Tensor, facts: dict[str, str]) -> None:
        """Write the images of one model, (n * k, 3, H, W), and what they score."""
        model = facts["model"]
        (self.folder / model).mkdir(exist_ok=True)
        for row, index in enumerate(batch.index.tolist()):
            prompt = batch.prompts[row]
            drawn = images[row * self.count : (row + 1) * self.count]
            scores = self._score(model, drawn, prompt, batch.metadata[row])
            for image, picture in enumerate(drawn):
                name = f"{model}/{index:04d}_{image}.png"
                about = {"prompt": prompt, "image": str(image), **facts}
                save_picture(picture, self.folder / name, about)
                own = finite({reward: values[image] for reward, values in scores.items()})
                record = {"file": name, "prompt": prompt, "model": model, "scores": own}
                append_line(self.folder / "scores.jsonl", json.dumps(record, ensure_ascii=False))
                if index < GRID_PROMPTS:
                    shown = ["-" if v is None else f"{v:.2f}" for v in own.values()]
                    caption = f"{' / '.join(shown)}\n{prompt}".strip()
                    self.images.setdefault(model, []).append(picture.cpu())
                    self.captions.setdefault(model, []).append(caption)

    def write_grid(self) -> None:
        """Write `grid.png`, the models side by side."""
        images = {model: torch.stack(drawn) for model, drawn in self.images.items()}
        grid = side_by_side(images, self.captions, self.count)
        save_png(grid, self.folder / "grid.png")

    def summary(self) -> list[str]:
        """One line for each reward: its mean over the finite scores of each model."""

        def mean(scores: list[float]) -> float:
            return float(torch.tensor(scores, device="cpu").nanmean())

        return [
            f"{reward.name}: "
            + ", ".join(
                f"{model} {mean(scores[reward.name]):.4f}" for model, scores in self.scores.items()
            )
            for reward in self.rewards
        ]

    def _score(
        self, model: str, images: Tensor, prompt: str, metadata: dict[str, Any]
    ) -> dict[str, list[float]]:
        """Prompt by prompt, so that one that a reward cannot read costs no other its scores."""
        prompts, extra = [prompt] * len(images), [metadata] * len(images)
        scores = {
            reward.name: guarded_scores(reward, images, prompts, extra).total.tolist()
            for reward in self.rewards
        }
        for name, values in scores.items():
            self.scores.setdefault(model, {}).setdefault(name, []).extend(values)
        return scores
