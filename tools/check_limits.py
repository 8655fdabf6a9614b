"""How much may stand in a file and in a folder; `make check` runs it from the repository's root.

An exception is named below with its reason. One that is no longer needed is an error too.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

PACKAGES = ("aegpo", "lightning_modules", "datamodules", "callbacks")

LINES_A_FILE = 300
LONG_FILES = {
    "aegpo/policies/base.py": "the contract of a policy: shapes and ranges of every method",
    "aegpo/policies/diffusers_policy.py": "one class, and the settings that all families share",
    "lightning_modules/arguments/sources.py": "one reading of a source, asked five questions",
    "lightning_modules/aegpo_module.py": "the training step, and the help of its 30 settings",
}

FILES_A_FOLDER = 12  # beside the face, __init__.py
FULL_FOLDERS = {
    "aegpo/rewards": "a file for each kind of reward, beside the folders of the larger ones",
    "callbacks": "flat on purpose, as Lightning's own are: each is looked up by its name",
}


def main() -> None:
    """Print every file and folder that holds too much, and exit with 1 if there is one."""
    files = [path for package in PACKAGES for path in sorted(Path(package).rglob("*.py"))]
    lines = {path.as_posix(): len(path.read_text("utf-8").splitlines()) for path in files}
    modules = {path.parent.as_posix(): 0 for path in files}
    for path in files:
        modules[path.parent.as_posix()] += path.name != "__init__.py"
    found = beyond(lines, LINES_A_FILE, LONG_FILES, "lines") + beyond(
        modules, FILES_A_FOLDER, FULL_FOLDERS, "files"
    )
    print("\n".join(found) or f"{len(lines)} files in {len(modules)} folders, none too full")
    sys.exit(bool(found))


def beyond(counts: Mapping[str, int], most: int, named: Mapping[str, str], of: str) -> list[str]:
    """What is above a limit without being named, or named without being above it."""
    too_full = {place for place, count in counts.items() if count > most}
    return [
        *(
            f"{place} has {counts[place]} {of}, more than {most}; part it, or name it with a reason"
            for place in sorted(too_full - set(named))
        ),
        *(
            f"{place} has no more than {most} {of}; it needs no exception any more"
            for place in sorted(set(named) - too_full)
        ),
    ]


if __name__ == "__main__":
    main()
