"""The README of an exported model: what it is, what it was trained for, how to load it."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from aegpo import __version__
from aegpo.policies.adapters.layouts import Layout
from aegpo.policies.exportable import denoiser_of
from aegpo.policies.pretrained import BUNDLED, find_pipeline
from aegpo.prompts.sets import companion_split
from aegpo.utilities.names import markdown_code, markdown_text
from aegpo.utilities.tables import markdown_table

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

METHOD_KEYS = (
    *("objective", "sde", "step_selector", "allocator", "transition_weight", "advantage"),
    *("credit", "pruning", "sampler", "evaluation_sampler"),
)
"""Arguments of the module that say which method this is, in the order of the card."""

REWARD_KEYS = ("reward", "evaluation_rewards")
TEMPLATE = Path(__file__).with_name("model_card.md")
FORMS: Mapping[Layout, str] = {
    "diffusers": "LoRA adapters",
    "kohya": "LoRA adapters in the layout of kohya's trainer",
    "comfyui": "LoRA adapters in a layout that ComfyUI reads",
    "merged": "merged LoRA adapters",
}
"""What a card calls what was trained."""
VERSIONS = ("torch", "diffusers", "peft", "transformers", "lightning")


@dataclass(frozen=True)
class Facts:
    """What a card says of a run.

    Attributes:
        name: Title of the card.
        base: What was trained, as the config names it: hub id, folder or bundled name.
        full: Whether the folder holds a whole pipeline instead of adapters.
        config: The run's config, `model` and `trainer` among its keys.
        code: Python that loads the model and draws an image.
        check: What the comparison with diffusers measured.
        scores: For each reward its held-out score by iteration; empty where nothing was logged.
        iteration: Iterations that the exported weights were trained for.
        averaged: Whether the weights are the average that the run kept.
        scored: Whether the scores are those of such weights: a run that keeps an average scores it.
        evaluations: Model evaluations spent, by purpose.
        training_evaluations: Those of them that are the cost of training.
        seed: Of the run.
        pictures: Files in the folder with what they show.
        form: As what the weights are written.
        beneath: The LoRA that was merged into the reference, and is part of the weights; if any.
    """

    name: str
    base: str
    full: bool
    config: Mapping[str, Any]
    code: str
    check: str
    scores: Mapping[str, Mapping[int, float]]
    iteration: int
    averaged: bool
    scored: bool
    evaluations: Mapping[str, int]
    training_evaluations: int
    seed: int
    pictures: Mapping[str, str]
    form: Layout = "diffusers"
    beneath: str | None = None


def model_card(facts: Facts) -> ModelCard:
    """Write the card.

    Args:
        facts: What it says.

    Returns:
        The card, with the front matter by which the hub files a model.
    """
    results = _eval_results(facts)
    data = ModelCardData(
        model_name=facts.name if results else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        base_model=facts.base if isinstance(_source(facts.base), str) else None,
        tags=[*([] if facts.full else ["lora"]), "reinforcement-learning", "aegpo"],
        eval_results=results or None,
    )
    card: ModelCard = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        facts=facts,
        title=markdown_text(facts.name),
        base=markdown_code(facts.base),
        beneath=markdown_code(facts.beneath) if facts.beneath else None,
        what=FORMS[facts.form],
        scores=_score_table(facts.scores),
        training=markdown_table(("", ""), _method(facts), text_columns=2),
    )
    return card


def loading_code(
    pipeline: DiffusionPipeline,
    base: str,
    folder: str | tuple[str, str],
    prompt: str,
    arguments: Mapping[str, Any],
    new_scheduler: bool = False,
) -> str:
    """Write the Python that a user of diffusers needs, and no more.

    Args:
        pipeline: The reloaded pipeline; its class, dtype, absent parts and, if it is new, its
            scheduler are taken over.
        base: Hub id, folder or bundled name of what was trained; "" if the folder has it all.
        folder: Where the export lies; with the name of its file, if diffusers would not guess it.
        prompt: What the example draws.
        arguments: Arguments of the pipeline's ``__call__``.
        new_scheduler: Whether the scheduler is not the one that the pipeline is saved with.

    Returns:
        The lines; they leave a picture in ``image``.
    """
    name = type(pipeline).__name__
    folder, *file = [folder] if isinstance(folder, str) else folder
    dtype = denoiser_of(pipeline).dtype
    options = [] if dtype == torch.float32 else [f"torch_dtype={dtype}"]
    options += [f"{part}=None" for part in _left_out(pipeline)]
    bundled = base in BUNDLED
    source = f"find_pipeline({_literal(base)})" if bundled else _literal(base or folder)
    lines = ["import torch"] if dtype != torch.float32 else []
    scheduler = pipeline.scheduler
    names = [name, type(scheduler).__name__] if new_scheduler else [name]
    lines.append(f"from diffusers import {', '.join(sorted(names))}")
    if bundled:
        lines.append("from aegpo.policies.pretrained import find_pipeline")
    loaded = ", ".join([source, *options])
    lines += ["", f"pipeline = {name}.from_pretrained(", f"    {loaded}", ")"]
    if base:
        given = [_literal(folder), *(f"weight_name={_literal(one)}" for one in file)]
        lines.append(f"pipeline.load_lora_weights({', '.join(given)})")
    if new_scheduler:
        lines.append(f"pipeline.scheduler = {_construction(scheduler)}")
    settings = [f"    {key}={_literal(value)}," for key, value in arguments.items()]
    lines += ["image = pipeline(", f"    prompt={_literal(prompt)},", *settings, ").images[0]"]
    return "\n".join(lines)


def describe(value: Any) -> str:
    """Put a part of a config on one line, as `EntropyPeaks(top_k=4, eta=0.7)`.

    Args:
        value: A class with its arguments, a list of such, or a plain value.

    Returns:
        The text; arguments that are null are left out.
    """
    if isinstance(value, Mapping) and "class_path" in value:
        arguments = value.get("init_args") or {}
        inner = ", ".join(
            f"{key}={describe(part)}" for key, part in arguments.items() if part is not None
        )
        return f"{value['class_path'].rpartition('.')[2]}({inner})"
    if isinstance(value, list):
        return f"[{', '.join(map(describe, value))}]"
    return str(value)


def _left_out(pipeline: DiffusionPipeline) -> list[str]:
    """Parts that diffusers has to be told to do without."""
    index = type(pipeline).load_config(pipeline.name_or_path)
    absent = [part for part, value in pipeline.components.items() if value is None]
    optional = type(pipeline)._optional_components
    return [part for part in absent if part not in optional or any(index.get(part) or ())]


def _construction(scheduler: Any) -> str:
    """Python that makes a scheduler: whatever of its configuration is no default."""
    parameters = inspect.signature(type(scheduler)).parameters
    settings = {name: scheduler.config[name] for name in parameters if name in scheduler.config}
    lines = [
        f"    {name}={_literal(value)},"
        for name, value in settings.items()
        if value != parameters[name].default
    ]
    return (
        "\n".join([f"{type(scheduler).__name__}(", *lines, ")"])
        if lines
        else (f"{type(scheduler).__name__}()")
    )


def _literal(value: Any) -> str:
    """Python for a plain value; texts in double quotes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _method(facts: Facts) -> list[tuple[str, str]]:
    """Rows of the training table, most of them from the config."""
    settings = facts.config.get("model", {}).get("init_args", {})
    rows = {key: settings.get(key) for key in (*REWARD_KEYS, *METHOD_KEYS)}
    described = {key: markdown_code(describe(value)) for key, value in rows.items() if value}
    if rows["objective"] is None and "clip_range" in settings:
        described["objective"] = (
            f"clipped policy gradient, `clip_range={settings['clip_range']}`, "
            f"`kl_coeff={settings.get('kl_coeff')}`"
        )
    callbacks = facts.config.get("trainer", {}).get("callbacks") or []
    names = [str(callback["class_path"]).rpartition(".")[2] for callback in callbacks]
    if names:
        described["callbacks"] = ", ".join(map(markdown_code, names))
    if "num_steps" in settings:
        described["denoising steps"] = str(settings["num_steps"])
    spent = ", ".join(f"{name} {count:,}" for name, count in facts.evaluations.items() if count)
    described["model evaluations"] = f"{facts.training_evaluations:,} ({spent})"
    described["versions"] = _versions()
    return [(key.replace("_", " "), value) for key, value in described.items()]


def _score_table(scores: Mapping[str, Mapping[int, float]]) -> str:
    """Each reward's first and last held-out score; nothing where none was logged."""
    rows = []
    for reward, values in scores.items():
        if values:
            first, last = min(values), max(values)
            after = ["not evaluated", ""]
            if last > first:
                change = f"{values[last] - values[first]:+.4f}"
                after = [f"{values[last]:.4f} (iteration {last})", change]
            rows.append([markdown_text(reward), f"{values[first]:.4f} (iteration {first})", *after])
    return markdown_table(("reward", "before", "after", "change"), rows) if rows else ""


def _eval_results(facts: Facts) -> list[EvalResult]:
    """The scores of these very weights, as the hub ranks models by them."""
    data = (facts.config.get("data") or {}).get("init_args") or {}
    file, train = data.get("val_file"), str(data.get("train_file"))
    if file == "auto":
        file = companion_split(train, "heldout") or f"{train} (held out)"
    prompts = PurePath(file or "held-out prompts").name  # not where it lies
    return [
        EvalResult(
            task_type="text-to-image",
            dataset_type=prompts,
            dataset_name=prompts,
            metric_type=reward,
            metric_value=round(values[facts.iteration], 4),
        )
        for reward, values in facts.scores.items()
        if facts.scored and math.isfinite(values.get(facts.iteration, math.nan))
    ]


def _versions() -> str:
    found = [f"aegpo {__version__}"]
    for name in VERSIONS:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue  # lightning is also distributed as pytorch-lightning
    return ", ".join(found)


def _source(base: str) -> str | Path | None:
    try:
        return find_pipeline(base)
    except FileNotFoundError:
        return None
