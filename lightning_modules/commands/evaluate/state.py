"""The folder of an evaluation: what is evaluated in it, so that another one is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aegpo.evaluation.suites import Suite
from aegpo.samplers import sampler_name
from aegpo.utilities.files import replacing
from aegpo.utilities.folders import check_new_folder
from aegpo.utilities.secrets import without_secrets
from aegpo.utilities.tables import finite
from lightning_modules.commands.configured_run import ConfiguredRun
from lightning_modules.commands.evaluate.drawing import Drawing
from lightning_modules.commands.evaluate.models import Source

STATE = "evaluation.json"
"""File of the folder that says what is evaluated in it; a folder without it is another's."""
MOST, LONGEST = 4, 60
"""Differences that a refusal names, and characters of a value in it."""
_OF_A_MODEL = ("kind", "path", "bytes", "time")


def identity_of(
    drawing: Drawing,
    prompts: Suite,
    models: Sequence[Source],
    rewards: Mapping[str, Any],
    run: ConfiguredRun,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """Say what must be the same for an evaluation to go on.

    Args:
        drawing: How images are drawn.
        prompts: The suite.
        models: What is evaluated.
        rewards: How the rewards are configured.
        run: The run as configured.
        more: Further values by name.

    Returns:
        Plain values.
    """
    section: Any = ((run.config.get("model") or {}).get("init_args")) or {}
    files = {one.name: [one.kind, one.path, *_stamp(one.path)] for one in models}
    return {
        "prompts": prompts.fingerprint,
        "protocol": prompts.protocol,
        "models": files,
        "rewards": dict(rewards),
        "policy": without_secrets({"policy": section.get("policy")})["policy"],
        "images_per_prompt": drawing.images_per_prompt,
        "num_steps": drawing.num_steps,
        "sampler": sampler_name(drawing.sampler),
        "resolution": drawing.resolution,
        "prompts_at_once": drawing.prompts_at_once,
        **more,
    }


def _stamp(path: str) -> list[int]:
    """Size and time of the files of a model, by which other ones in their place are told."""
    place = Path(path).expanduser()
    if not path or not place.exists():
        return []
    files = [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]
    about = [file.stat() for file in files]
    return [sum(one.st_size for one in about), max((one.st_mtime_ns for one in about), default=0)]


def go_on(folder: Path, identity: Mapping[str, Any], out: str) -> None:
    """Refuse a folder that holds anything but this evaluation.

    Args:
        folder: The folder; it need not exist.
        identity: What is to be evaluated in it.
        out: The folder as it was given.

    Raises:
        ValueError: If it holds something else.
    """
    state = folder / STATE
    if not state.is_file():
        check_new_folder(out)
        return
    before = json.loads(state.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(finite(dict(identity)), default=str))
    apart = list(_differences({key: before.get(key) for key in now}, now))
    if apart:
        more = f" and {len(apart) - MOST} more" if len(apart) > MOST else ""
        raise ValueError(
            f"--out {out} holds an evaluation with another {', '.join(apart[:MOST])}{more}; give "
            "another folder, or the same arguments to go on with it"
        )


def _differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """Name each value that differs, however deep it lies."""
    if name.startswith("models.") and isinstance(before, list) and isinstance(now, list):
        before, now = (dict(zip(_OF_A_MODEL, one, strict=False)) for one in (before, now))
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [key for key in before | now if before.get(key) != now.get(key)]:
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))
    else:
        yield f"{name} ({_short(before)} → {_short(now)})"


def _short(value: Any) -> str:
    text = "none" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def write_state(folder: Path, identity: Mapping[str, Any]) -> None:
    """Write what is evaluated in a folder, unless it is there.

    Args:
        folder: The folder; made if need be.
        identity: As `identity_of` says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / STATE).is_file():
        with replacing(folder / STATE) as partial:
            partial.write_text(json.dumps(finite(dict(identity)), indent=1, default=str))
