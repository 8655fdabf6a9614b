"""What is wrong with the files of `aegpo evaluate`, said before torch is imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from aegpo.evaluation.protocols import missing_suite
from lightning_modules.arguments.messages import fail


def main(args: Sequence[str] | None = None) -> bool:
    """Refuse files that are not there.

    Args:
        args: Arguments after `evaluate` instead of those of the process.

    Returns:
        True: the command follows.
    """
    typed = list(sys.argv[2:] if args is None else args)
    if "-h" in typed or "--help" in typed:
        return True
    mistake = next(_mistakes(typed), None)
    if mistake is not None:
        fail(mistake)
    return True


def _mistakes(typed: Sequence[str]) -> Iterator[str]:
    suite, protocol = _value(typed, "suite"), _value(typed, "protocol") or "auto"
    if suite is not None or protocol != "auto":
        mistake = missing_suite(suite or "", protocol)
        if mistake is not None:
            yield mistake
    for file in _values(typed, "beside"):
        if not Path(file).expanduser().exists():
            yield (
                f"--beside {file} does not exist; give the results.json of another evaluation, or "
                "its folder"
            )
    for text in _values(typed, "tuned"):
        path = Path(text.rpartition("=")[2]).expanduser()
        # What has no ending may be a hub id.
        if path.suffix in (".ckpt", ".safetensors") and not path.exists():
            yield f"--tuned {text} does not exist; give name=path, the path of a file that is there"
    reference = _value(typed, "reference")
    if reference is not None and not Path(reference).expanduser().is_dir():
        yield f"--reference {reference} is no folder; give a folder of images"


def _values(typed: Sequence[str], option: str) -> list[str]:
    """All words that were typed for an option that takes several."""
    found: list[str] = []
    taking = False
    for word in typed:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            taking = name == f"--{option}"
            found += [value] if taking and equals else []
        elif taking:
            found.append(word)
    return [one for one in found if not one.startswith("[")]  # a list in YAML


def _value(typed: Sequence[str], option: str) -> str | None:
    """The last value that was typed for an option."""
    found = None
    for word, after in zip(typed, [*typed[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name == f"--{option}":
            found = value if equals else after
    return found
