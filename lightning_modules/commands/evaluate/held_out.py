"""The suite of an evaluation that names none: what the run itself was measured on."""

from __future__ import annotations

from typing import Any

from aegpo.evaluation.suites import Suite, read_suite, suite_of
from aegpo.prompts.sets import companion_split
from lightning_modules.commands.configured_run import ConfiguredRun


def held_out_suite(
    run: ConfiguredRun, protocol: str = "auto", column: str | None = None, limit: int | None = None
) -> Suite:
    """Read the held-out prompts of a run.

    Args:
        run: The run as configured.
        protocol: Key of `PROTOCOLS`, or "auto" for what the file's name says.
        column: Field that holds the prompt; that of the run's data by default.
        limit: The first so many prompts alone; None for all.

    Returns:
        The prompts of `data.val_file`. Where that is "auto", those of the bundled set, or the part
        of the run's own file that was held out.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If the run holds nothing out.
    """
    data: Any = ((run.config.get("data") or {}).get("init_args")) or {}
    source, trained = data.get("val_file"), str(data.get("train_file"))
    if not source:
        raise ValueError("the config has no data.val_file; give the prompts as --suite")
    if source == "auto":
        source = companion_split(trained, "heldout")
    if source is not None:
        return read_suite(str(source), protocol, column or _column(data), limit)
    held_out = getattr(run.build_data(), "val_prompts", None)
    if held_out is None:
        raise ValueError(
            f"data.val_file=auto, and the run's data has no held-out part of {trained}; give the "
            "prompts as --suite"
        )
    plain = {} if protocol == "auto" else {"protocol": protocol}
    return suite_of(held_out.records[:limit], f"{trained} (its held-out part)", **plain)


def _column(data: Any) -> str | None:
    """Where a config says which field holds the prompt; the name that all have says nothing."""
    column = data.get("column")
    return None if column == "prompt" else column
