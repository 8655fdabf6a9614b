"""Results of an evaluation as plain values: what is written to JSON, and read again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aegpo.evaluation.intervals import difference_of, score_of
from aegpo.evaluation.protocols import Averaging
from aegpo.evaluation.suites import Suite
from aegpo.utilities.tables import finite

FORMAT = "aegpo evaluation 1"
BASE = "base"


@dataclass(frozen=True)
class ModelScores:
    """What was measured of one model.

    Attributes:
        name: As the table has it; the first model is the base.
        kind: "base", "checkpoint", "lora" or "pipeline".
        source: Where it came from.
        weights: Fingerprint of the denoiser's weights.
        settings: With what its images were drawn.
        about: What else is known of it, such as its iteration.
        scores: For each score the mean of each prompt over its images, NaN where there is none.
        missing: How many images each score is missing for.
        distances: Distances of its images to a folder of images; numbers by name.
    """

    name: str
    kind: str
    source: str
    weights: str
    settings: dict[str, Any]
    about: dict[str, Any]
    scores: dict[str, list[float]]
    missing: dict[str, int]
    distances: dict[str, Any] = field(default_factory=dict)


def result_of(
    suite: Suite,
    models: Sequence[ModelScores],
    rewards: Mapping[str, Any],
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """Put an evaluation together.

    Args:
        suite: The prompts.
        models: What was measured, the base first.
        rewards: By the name of a score, how its reward was configured.
        versions: Of the packages.

    Returns:
        Plain values that JSON can say.
    """
    about = suite.about
    told = {
        "source": suite.source,
        "protocol": suite.protocol,
        "title": about.title,
        "prompts": len(suite.prompts),
        "fingerprint": suite.fingerprint,
        "averaging": about.averaging,
        "official_images_per_prompt": about.images_per_prompt,
        "official_judge": about.judge,
    }
    result = {
        "format": FORMAT,
        "suite": told,
        "versions": dict(versions),
        "rewards": dict(rewards),
        "models": [_entry(one, models[0], suite.categories, about.averaging) for one in models],
        "prompts": [
            {"prompt": text, "category": category}
            for text, category in zip(suite.prompts, suite.categories, strict=True)
        ],
    }
    plain: dict[str, Any] = finite(result)
    return plain


def _entry(
    model: ModelScores, base: ModelScores, categories: Sequence[str], averaging: Averaging
) -> dict[str, Any]:
    """One model: its scores with intervals, by category, and against the base."""
    images = int(model.settings["images_per_prompt"])
    comparable = model is not base and model.settings == base.settings
    scores: dict[str, Any] = {}
    for name, values in model.scores.items():
        entry: dict[str, Any] = asdict(score_of(values, categories, averaging))
        if averaging == "separate":
            entry |= {"mean": None, "low": None, "high": None}
        entry |= {"images": len(values) * images, "missing": model.missing.get(name, 0)}
        apart = [
            value - other for value, other in zip(values, base.scores.get(name, []), strict=False)
        ]
        if comparable and name in base.scores:
            entry["difference"] = asdict(
                difference_of(values, base.scores[name], categories, averaging)
            )
        names = sorted(set(categories))
        entry["categories"] = {
            one: _of_category(one, values, apart if comparable else [], categories)
            for one in (names if len(names) > 1 else [])
        }
        entry["per_prompt"] = values
        scores[name] = entry
    told = asdict(model)
    del told["scores"], told["missing"]
    return {**told, "settings_id": settings_id(model.settings), "scores": scores}


def _of_category(
    category: str, values: Sequence[float], apart: Sequence[float], categories: Sequence[str]
) -> dict[str, Any]:
    rows = [row for row, one in enumerate(categories) if one == category]
    entry: dict[str, Any] = asdict(score_of([values[row] for row in rows], [category] * len(rows)))
    if apart:
        own = [apart[row] for row in rows]
        entry["difference"] = asdict(score_of(own, [category] * len(rows)))
    return entry


def settings_id(settings: Mapping[str, Any]) -> str:
    """Eight digits that two images share if they were drawn with the same settings."""
    text = json.dumps(finite(dict(settings)), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def read_result(file: str) -> dict[str, Any]:
    """Read a result that an earlier evaluation wrote.

    Args:
        file: Its results.json, or the folder that holds it.

    Returns:
        As `result_of` made it.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is something else.
    """
    path = Path(file).expanduser()
    path = path / "results.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"--beside {file} does not exist; give the results.json of another evaluation, or its "
            "folder"
        )
    try:
        result: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--beside {file} is not JSON ({error})") from None
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise ValueError(f"--beside {file} is no result of aegpo evaluate ({FORMAT})")
    return result


def read_results(files: Sequence[str], own: Path) -> dict[str, dict[str, Any]]:
    """Read results of other evaluations.

    Args:
        files: As for `read_result`.
        own: Folder of the evaluation that they are to stand beside.

    Returns:
        By the name of the folder or the file, by the whole path where that is taken.
    """
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        path = Path(file)
        name = (path.parent.name or file) if path.name == "results.json" else path.stem
        taken = name in found or name == own.resolve().name
        found[file if taken else name] = read_result(file)
    return found
