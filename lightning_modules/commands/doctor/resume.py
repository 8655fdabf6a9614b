"""``aegpo doctor --resume``: a run that is killed and goes on equals one that was never killed.

The config's own training, made short, runs as real processes in a temporary folder: once whole,
once killed with SIGKILL again and again and restarted with ``--ckpt_path last``. Every logged
number, the last checkpoint and the other files of the log folder have to be the same, to the bit.
Imported before torch.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aegpo.utilities.tables import markdown_table
from lightning_modules.arguments.messages import UserError, debugging, fail
from lightning_modules.commands.compare.compare import resolve_in_subprocess
from lightning_modules.commands.doctor.killed_run import (
    KilledRun,
    Place,
    Start,
    places,
    read_notes,
    short_config,
    start,
)

PHASES = ("checkpoint", "rollout", "update", "validation")
"""What is struck first; the fifth kill and those after it strike anywhere, then these again."""
HEADER = ("kill", "moment", "restarted from iteration", "equal")


@dataclass(frozen=True)
class Row:
    """One kill.

    Args:
        moment: Where it struck.
        began: Iteration from which the restart went on.
        difference: The first thing that is not as in the whole run; None if all is.
    """

    moment: str
    began: int
    difference: str | None


def main(arguments: list[str]) -> None:
    """Run the command; status 1 if anything differs, 2 with one line if a run does not work.

    Args:
        arguments: What was typed after `doctor`.
    """
    parser = _parser()
    options, words = parser.parse_known_args(arguments)
    if "--ckpt_path" in " ".join(words):
        fail("doctor --resume begins its own run; leave out --ckpt_path")
    for name in ("kills", "iterations"):
        if getattr(options, name) < 1:
            fail(f"--{name} {getattr(options, name)} must be at least 1")
    folder = Path(tempfile.mkdtemp(prefix="aegpo-resume-"))
    try:
        (resolved,) = resolve_in_subprocess([words])
        config = short_config(resolved, options.iterations, options.processes)
        rows = prove(folder, config, options.kills, options.seed, patience=options.patience)
    except UserError as error:
        if debugging():
            raise
        fail(str(error))
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        raise SystemExit(130) from None
    print("\n" + table(rows))
    if any(row.difference for row in rows):
        print(f"\nNOT equal; both runs are in {folder}")
        raise SystemExit(1)
    shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{len(rows)} kills, equal to the run that was never killed")


def prove(
    folder: Path,
    config: Mapping[str, Any],
    kills: int,
    seed: int,
    patience: float = 900.0,
    start_process: Start = start,
) -> list[Row]:
    """Run a training whole and killed, and compare the two.

    Args:
        folder: Where both runs are put.
        config: What `short_config` returned.
        kills: How often the second run is killed.
        seed: Of the moments.
        patience: Seconds without a sign of life after which a process counts as hung.
        start_process: Starts a process of this program.

    Returns:
        One row a kill.

    Raises:
        UserError: If a run ends in another way than it should, or a kill did not strike.
    """
    whole = KilledRun(folder / "whole", config, patience, start_process)
    killed = KilledRun(folder / "killed", config, patience, start_process)
    print("the run that is never killed ...", flush=True)
    reference = read_notes(whole.live())
    processes = len(reference)
    moments = draw_moments(list(places(reference)), kills, seed)
    lives, words = [], []
    for number, moment in enumerate(moments, 1):
        notes = read_notes(killed.live(moment))
        struck = next((n for lines in notes.values() for n in lines if n.get("struck")), None)
        if struck is None:
            raise UserError(f"kill {number} left no note; see {killed.folder}")
        words.append(moment.words(processes))
        print(f"kill {number}: {words[-1]}", flush=True)
        lives.append(notes)
    lives.append(read_notes(killed.live()))
    return [
        Row(text, _began(after), difference)
        for text, after, difference in zip(
            words, lives[1:], _differences(whole, killed, reference, lives), strict=True
        )
    ]


def draw_moments(passed: Sequence[Place], kills: int, seed: int) -> list[Place]:
    """Draw places between the first checkpoint and the last, in the order in which a run comes by.

    Args:
        passed: All places of the run that was never killed, in the order of time.
        kills: How many are drawn.
        seed: Of the draw.

    Returns:
        Different places, of every phase in turn.

    Raises:
        UserError: If there are not enough of them.
    """
    saved = [i for i, one in enumerate(passed) if one.facts.get("stage") == "renamed"]
    left = list(enumerate(passed))[saved[0] : saved[-1]] if saved else []
    if len(left) < kills:
        raise UserError(
            f"the run passes {len(left)} places after its first checkpoint and before its last, "
            f"too few for {kills} kills; raise --iterations"
        )
    draw = random.Random(seed)
    chosen = []
    for number in range(kills):
        turn = (*PHASES, None)[number % (len(PHASES) + 1)]
        candidates = [one for one in left if turn in (None, one[1].phase)] or left
        chosen.append(draw.choice(candidates))
        left.remove(chosen[-1])
    return [place for _, place in sorted(chosen, key=lambda one: one[0])]


def table(rows: Sequence[Row]) -> str:
    """Lay the kills out, one a line."""
    cells = [
        (str(number), row.moment, str(row.began), row.difference or "yes")
        for number, row in enumerate(rows, 1)
    ]
    return markdown_table(HEADER, cells, text_columns=len(HEADER))


Notes = dict[int, list[dict[str, Any]]]


def _differences(
    whole: KilledRun, killed: KilledRun, reference: Notes, lives: Sequence[Notes]
) -> list[str | None]:
    """What is wrong after each kill; what only the end shows stands with the last one."""
    from lightning_modules.commands.doctor.equality import (
        checkpoints_differ,
        files_differ,
        first_difference,
        logged_rows,
        never_logged,
    )

    rows = logged_rows(reference[0])
    logged = [logged_rows(notes.get(0, [])) for notes in lives]
    found = [first_difference(rows, life) for life in logged[1:]]
    found = [_wrong_restart(lives, number) or one for number, one in enumerate(found)]
    found[0] = first_difference(rows, logged[0]) or found[0]
    found[-1] = (
        found[-1]
        or never_logged(rows, logged)
        or _other_ends(reference, lives[-1])
        or checkpoints_differ(whole.folder, killed.folder)
        or files_differ(whole.folder, killed.folder)
    )
    return found


def _wrong_restart(lives: Sequence[Notes], number: int) -> str | None:
    """Whether the life after a kill went on from the last whole checkpoint, and on every rank."""
    saved = [note for notes in lives[: number + 1] for note in notes.get(0, []) if "saved" in note]
    latest = {note["saved"]: note for note in saved}  # of each file
    for rank, lines in lives[number + 1].items():
        began = next((note for note in lines if "began" in note), None)
        if began is None:
            return f"rank {rank} did not begin to train"
        source = latest.get(began["checkpoint"] or "")
        expected = source["iteration"] if source else 0
        if began["began"] != expected or (saved and source is None):
            return f"rank {rank} went on from {began['began']} with {began['checkpoint']}"
        if source and began["digest"] != source["digest"]:
            return f"{began['checkpoint']} was not what was last written there"
    return None


def _other_ends(reference: Notes, last: Notes) -> str | None:
    """Whether a rank ended with other weights than in the whole run."""
    ends = [
        {
            rank: (note["ended"], note["weights"])
            for rank, lines in notes.items()
            for note in lines
            if "ended" in note
        }
        for notes in (reference, last)
    ]
    ranks = sorted(rank for rank in ends[0] if ends[0][rank] != ends[1].get(rank))
    return f"the weights of rank {ranks[0]} at the end differ" if ranks else None


def _began(notes: Notes) -> int:
    return next((int(note["began"]) for note in notes.get(0, []) if "began" in note), -1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aegpo doctor --resume",
        allow_abbrev=False,
        description="Kill a short run of a config with SIGKILL, restart it with --ckpt_path last, "
        "and compare it bit for bit with one that was never killed. All other arguments are those "
        "of fit. Nothing is written outside a temporary folder.",
    )
    parser.add_argument("--resume", action="store_true", help="this check")
    parser.add_argument("--kills", type=int, default=4, help="how often (4)")
    parser.add_argument("--iterations", type=int, default=6, help="length of the run (6)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills (0)")
    parser.add_argument("--processes", type=int, help="processes of the run (the config's)")
    parser.add_argument(
        "--patience", type=float, default=900.0, help="seconds of silence that count as hung (900)"
    )
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
