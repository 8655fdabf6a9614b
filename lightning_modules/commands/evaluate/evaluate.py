"""`aegpo evaluate`: base and tuned models on a suite of prompts, in one table with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from aegpo.distributed import is_sharded
from aegpo.evaluation.distances import (
    ImageFeatures,
    Reference,
    distances,
    features_of,
    images_in,
    reference_of,
)
from aegpo.evaluation.fingerprints import versions, weights_fingerprint
from aegpo.evaluation.results import ModelScores, read_results, result_of
from aegpo.evaluation.suites import read_suite
from aegpo.noise import KeyedNoise
from aegpo.policies.base import Policy
from aegpo.prompts import PromptBatch
from aegpo.rewards.base import Reward
from aegpo.samplers import sampler_name
from aegpo.utilities.checks import require_positive
from aegpo.utilities.folders import check_folder
from aegpo.utilities.secrets import without_secrets
from lightning_modules.commands.configured_run import ConfiguredRun
from lightning_modules.commands.evaluate.drawing import Drawing
from lightning_modules.commands.evaluate.held_out import held_out_suite
from lightning_modules.commands.evaluate.models import find_models, loaded
from lightning_modules.commands.evaluate.state import go_on, identity_of, write_state
from lightning_modules.commands.evaluate.write import told, write
from lightning_modules.commands.export.run_record import pretrained_name
from lightning_modules.commands.inside_trainer import Weights, inside_trainer
from lightning_modules.policy_module import PolicyModule


def evaluate(
    trainer: Trainer,
    model: LightningModule,
    ckpt_path: str | None = None,
    weights_only: bool | None = None,
    *,
    out: str,
    suite: str | None = None,
    protocol: str = "auto",
    column: str | None = None,
    limit: int | None = None,
    tuned: list[str] | None = None,
    weights: Weights = "ema",
    images_per_prompt: int | None = None,
    num_steps: int | None = None,
    seed: int = 0,
    prompts_at_once: int = 8,
    reference: str | None = None,
    features: str = "shapes",
    beside: list[str] | None = None,
    run: ConfiguredRun | None = None,
) -> None:
    """Score base and tuned models on a suite of prompts, with intervals and all settings.

    The same command goes on where it was killed. All models start from the same noise.

    Args:
        trainer: A trainer, of as many processes as it is given.
        model: The configured module.
        ckpt_path: Checkpoint of the config to evaluate: a file, or last or best.
        weights_only: Whether to load checkpoints without unpickling objects.
        out: Folder of the results, new, or of the same evaluation, which then goes on.
        suite: A bundled split, such as shapes:heldout, a file of prompts, or the file or folder
            of a public benchmark; the run's held-out prompts by default.
        protocol: What the suite is: plain, geneval, dpg, drawbench, parti or t2i_compbench; auto
            goes by the file's name.
        column: Field that holds the prompt, where it is not the format's own.
        limit: The first so many prompts of the suite alone, for a trial.
        tuned: More models, each a path or name=path: a checkpoint of the config, a LoRA's folder or
            file, a pipeline's folder or hub id.
        weights: The averaged weights of checkpoints that have an average, or the last ones.
        images_per_prompt: Images per prompt; the protocol's by default.
        num_steps: Denoising steps; the config's by default.
        seed: Of the noise that the images start from.
        prompts_at_once: Prompts that are drawn together, and kept together when it is killed.
        reference: Folder of images that FID and KID are distances to; neither without it.
        features: The network for them, as for aegpo.rewards.OpenCLIPSimilarity: shapes, a folder,
            hf-hub:owner/name, or an architecture, a comma and its weights.
        beside: Results of other evaluations to show in the table: a results.json or its folder.
        run: The run as configured.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If the module has no policy, a file is not what it should be, or the folder
            holds something else.
    """
    if not isinstance(model, PolicyModule):
        raise ValueError(f"aegpo evaluate scores a policy, and {type(model).__name__} has none")
    known = run or ConfiguredRun()
    _require_positive(
        images_per_prompt=images_per_prompt,
        num_steps=num_steps,
        limit=limit,
        prompts_at_once=prompts_at_once,
    )
    if suite is None:
        prompts = held_out_suite(known, protocol, column, limit)
    else:
        prompts = read_suite(suite, protocol, column, limit)
    models = find_models(tuned or [], ckpt_path)
    others = read_results(beside or [], Path(out))
    drawing = Drawing(
        folder=check_folder(out),
        images_per_prompt=images_per_prompt or prompts.about.images_per_prompt,
        num_steps=num_steps or model.evaluation_steps,
        noise=KeyedNoise(seed).fixed(),
        sampler=model.evaluation_sampler,
        resolution=model.evaluation_resolution,
        prompts_at_once=prompts_at_once,
    )
    rewards = [one for one in model.rewards if drawing.images_per_prompt > 1 or not one.groupwise]
    words = _rewards_in_words(known, model, rewards)
    about = {"seed": seed, "weights": weights, "precision": str(trainer.precision)}
    identity = identity_of(drawing, prompts, models, words, known, about)
    go_on(drawing.folder, identity, out)
    compared = None if reference is None else _Compared(reference, features)
    measured: list[ModelScores] = []

    def work(batch: PromptBatch) -> None:
        _refuse_sharded(model.policy)
        if trainer.is_global_zero:
            write_state(drawing.folder, identity)
        for one in models:
            with loaded(one, model, weights, weights_only) as (policy, facts):
                drawing.draw(one.name, policy, batch, rewards)
                trainer.strategy.barrier()  # all parts are there
                if not trainer.is_global_zero:
                    continue
                found = drawing.read(one.name, len(batch))
                settings = _settings(drawing, policy, str(trainer.precision), seed)
                measured.append(
                    ModelScores(
                        name=one.name,
                        kind=one.kind,
                        source=one.path or pretrained_name(known) or type(policy).__name__,
                        weights=weights_fingerprint(policy.denoiser, one.kind != "base"),
                        settings=settings | {"size": found["size"]},
                        about=facts,
                        scores=found["scores"],
                        missing=found["missing"],
                        distances={}
                        if compared is None
                        else compared.distances(drawing.images_of(one.name, len(batch)), policy),
                    )
                )
        if trainer.is_global_zero:
            result = result_of(prompts, measured, words, versions())
            write(drawing, prompts, result, others)
            for line in told(result, others, out):
                print(line)

    batch = PromptBatch(
        prompts.prompts, torch.arange(len(prompts.prompts), device="cpu"), prompts.metadata
    )
    inside_trainer(trainer, model, batch, work, None, weights_only)


def _require_positive(**numbers: int | None) -> None:
    for name, value in numbers.items():
        if value is not None:
            require_positive(name, value)


def _rewards_in_words(
    run: ConfiguredRun, model: PolicyModule, rewards: Sequence[Reward]
) -> dict[str, Any]:
    """How each reward was configured, by the name of its score; its class where that is unknown."""
    section: Any = ((run.config.get("model") or {}).get("init_args")) or {}
    listed = [section.get("reward"), *(section.get("evaluation_rewards") or [])]
    config = without_secrets({"rewards": [one for one in listed if one]})["rewards"]
    told = {reward.name: {"class_path": _class(reward)} for reward in rewards}
    if len(config) == len(model.rewards):
        told |= {reward.name: one for reward, one in zip(model.rewards, config, strict=True)}
    return told


def _class(reward: Reward) -> str:
    return f"{type(reward).__module__}.{type(reward).__qualname__}"


def _settings(drawing: Drawing, policy: Policy, precision: str, seed: int) -> dict[str, Any]:
    """All that decides what a model draws beside its weights."""
    texts = {name: getattr(policy, name, None) for name in getattr(policy, "text_arguments", ())}
    dtype = next(policy.denoiser.parameters()).dtype
    return {
        "guidance_scale": float(policy.guidance_scale),
        "steps": drawing.num_steps,
        "sampler": sampler_name(drawing.sampler),
        "noise_levels": [round(value, 6) for value in policy.sigmas(drawing.num_steps).tolist()],
        "dtype": str(dtype).removeprefix("torch."),
        "precision": precision,
        "images_per_prompt": drawing.images_per_prompt,
        "seed": seed,
        **{name: value for name, value in texts.items() if value not in (None, "")},
    }


def _refuse_sharded(policy: Policy) -> None:
    if is_sharded(policy.denoiser):
        raise ValueError(
            "aegpo evaluate keeps a whole model on every device, which trainer.strategy=fsdp2 does "
            "not; use ddp"
        )


class _Compared:
    """Distances to a folder of images, which is embedded once, when the first model is done.

    Args:
        folder: The images.
        model: The network.

    Raises:
        ValueError: If there are too few images.
        FileNotFoundError: If the network is not there.
    """

    def __init__(self, folder: str, model: str) -> None:
        if not Path(folder).expanduser().is_dir():
            raise FileNotFoundError(f"--reference {folder} is no folder; give a folder of images")
        images_in(Path(folder).expanduser())
        self.network = ImageFeatures(model)
        self.folder, self.model = folder, model
        self.reference: Reference | None = None

    def distances(self, files: Sequence[Path], policy: Policy) -> dict[str, Any]:
        """FID and KID of a model's images, computed where the policy is."""
        if len(files) < 2:
            return {}
        if self.reference is None:
            self.reference = reference_of(self.folder, self.model, self.network, policy.device)
        return distances(features_of(self.network, files, policy.device), self.reference)
