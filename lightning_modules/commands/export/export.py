"""`aegpo export`: write the weights, load them back by diffusers, compare, describe."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from lightning.pytorch import LightningModule, Trainer

from aegpo.export.check import ExportCheck, check_export
from aegpo.export.hub import check_hub_target, push
from aegpo.export.model_card import Facts, loading_code, model_card
from aegpo.policies.adapters.given import DEFAULT_FILE
from aegpo.policies.adapters.layouts import Form, Layout
from aegpo.policies.exportable import Exportable
from aegpo.prompts import PromptBatch
from aegpo.rollout.deterministic import deterministic_rollout
from aegpo.utilities.folders import check_new_folder, published
from aegpo.utilities.images import side_by_side
from aegpo.utilities.secrets import without_secrets
from lightning_modules.commands.configured_run import ConfiguredRun
from lightning_modules.commands.export.formats import check_layout
from lightning_modules.commands.export.run_record import (
    draw_scores,
    example_prompts,
    logged_scores,
    pretrained_name,
)
from lightning_modules.commands.inside_trainer import Weights, inside_trainer
from lightning_modules.policy_module import EVALUATION_NOISE, PolicyModule

NUM_PROMPTS = 8
"""Images compared and shown, if no prompts are given."""

GRID, CURVE = "base_and_tuned.png", "scores.png"


def export(
    trainer: Trainer,
    model: LightningModule,
    ckpt_path: str | None = None,
    weights_only: bool | None = None,
    *,
    out: str,
    format: Layout = "diffusers",
    weights: Weights = "ema",
    prompts: list[str] | None = None,
    push_to_hub: str | None = None,
    private: bool = True,
    run: ConfiguredRun | None = None,
) -> None:
    """Write what was trained for diffusers, checked against diffusers, with a model card.

    Args:
        trainer: A trainer of one process.
        model: The configured module.
        ckpt_path: Checkpoint to export: a file, or last for the run's last one.
        weights_only: Whether to load that checkpoint without unpickling objects.
        out: Folder to write, new or empty; it appears only if the comparison held.
        format: Adapters as a LoRA file of diffusers, of kohya's trainer (AUTOMATIC1111, Forge,
            InvokeAI) or of ComfyUI, or merged into the weights of a whole pipeline.
        weights: The averaged weights, if the run kept an average, or the last ones.
        prompts: Texts to draw for the comparison and the card; the run's first held-out
            prompts by default.
        push_to_hub: Hub id (owner/name) to send the folder to once it is checked; nowhere by
            default.
        private: Whether a repository that is made for it is for you alone.
        run: The run as configured, for the model card.

    Raises:
        ValueError: If the module has no policy, there is no checkpoint, the folder is taken, the
            policy has no such format, or the export does not compute what the policy computes.
    """
    if not isinstance(model, PolicyModule):
        raise ValueError(
            f"aegpo export writes a trained policy, and {type(model).__name__} trains none"
        )
    if ckpt_path is None:
        raise ValueError("aegpo export needs the weights: give --ckpt_path last, or a file")
    folder = check_new_folder(out)
    check_layout(model.policy_factory, format)
    if push_to_hub is not None:
        check_hub_target(push_to_hub)
    form = Form(format, folder.resolve().name)
    known = run or ConfiguredRun()
    config = without_secrets(known.config)  # the folder is for others
    texts = list(dict.fromkeys(prompts or example_prompts(known, NUM_PROMPTS)))
    batch = PromptBatch(texts, torch.arange(len(texts), device="cpu"), [{} for _ in texts])
    model.prefers_averaged = weights == "ema"

    def work(batch: PromptBatch) -> None:
        spent = dict(model.policy.evaluations.counts), model.policy.evaluations.total
        scores = logged_scores(known, [reward.name for reward in rewards], model.iteration)
        with published(folder) as partial:
            code, check = _write_checked(
                model, batch, partial, (push_to_hub or out, form), pretrained_name(known)
            )
            pictures = {GRID: "The base beside the tuned model, same noise."}
            if any(scores.values()):
                draw_scores(scores).savefig(partial / CURVE, dpi=120)
                pictures[CURVE] = "Held-out scores over the training."
            (partial / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
            facts = Facts(
                name=folder.resolve().name,
                base=pretrained_name(known) or type(model.policy).__name__,
                full=(partial / "model_index.json").is_file(),
                form=form.layout,
                beneath=model.policy.beneath_from if isinstance(model.policy, Exportable) else None,
                config=config,
                code=code,
                check=str(check),
                scores=scores,
                iteration=model.iteration,
                averaged=model.averaged is not None and model.prefers_averaged,
                scored=model.averaged is None or model.prefers_averaged,
                evaluations=spent[0],
                training_evaluations=spent[1],
                seed=model.noise.seed,
                pictures=pictures,
            )
            model_card(facts).save(partial / "README.md")
        print(f"{out}: exported; {check}")
        if push_to_hub is not None:
            print(f"{push_to_hub}: pushed; {push(folder, push_to_hub, private)}")

    with model.without_rewards() as rewards:
        inside_trainer(trainer, model, batch, work, ckpt_path, weights_only)


def _write_checked(
    model: PolicyModule,
    batch: PromptBatch,
    folder: Path,
    wanted: tuple[str, Form],
    pretrained: str | None,
) -> tuple[str, ExportCheck]:
    """Write weights and grid; the code that loads them, and how far they are from the policy."""
    policy, num_steps, (out, form) = model.policy, model.evaluation_steps, wanted
    if not isinstance(policy, Exportable):
        raise ValueError(
            f"{type(policy).__name__} cannot be exported: it does not say how diffusers loads and "
            "calls it; derive it from aegpo.policies.exportable.Exportable"
        )
    # Who loads the export computes in its own dtype, whatever the precision of the training was.
    with (
        torch.autocast(policy.device.type, enabled=False),
        policy.at_resolution(model.evaluation_resolution),
    ):
        with policy.reference():
            base = deterministic_rollout(
                policy, batch.prompts, batch.index, num_steps, EVALUATION_NOISE
            ).images
        check, pipeline, tuned = check_export(
            policy, folder, batch.prompts, batch.index, num_steps, EVALUATION_NOISE, form
        )
        arguments = policy.pipeline_arguments(num_steps)
    if not check.passed:
        raise ValueError(
            f"the export is not the trained model, and nothing was written: {check}; "
            "compare the policy's load_exported and pipeline_arguments with the training"
        )
    assert base is not None
    captions = {name: batch.prompts for name in ("base", "tuned")}
    side_by_side({"base": base, "tuned": tuned}, captions).save(folder / GRID)
    full = (folder / "model_index.json").is_file()
    source = "" if full else pretrained or str(pipeline.name_or_path)
    files = [file.name for file in folder.glob("*.safetensors") if not full]
    where = (out, files[0]) if files and files[0] != DEFAULT_FILE else out
    code = loading_code(
        pipeline, source, where, batch.prompts[0], arguments, policy.replaces_scheduler
    )
    return code, check
