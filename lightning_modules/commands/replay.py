"""``aegpo replay``: a logged run's decisions beside those of another allocator or selector."""

from __future__ import annotations

import sys
from pathlib import Path

from aegpo.allocation import Allocator
from aegpo.exploration import StepSelector
from aegpo.study.decision_log import read_decisions
from aegpo.study.decision_replay import (
    SizeAgreement,
    StepAgreement,
    compare_sizes,
    compare_steps,
)
from lightning_modules.arguments.parser import OneLineParser


def main(args: list[str] | None = None) -> None:
    """Run the command; a user's mistake is one line and status 2.

    Args:
        args: Arguments after `replay` instead of those of the process.
    """
    parser = OneLineParser(
        prog="aegpo replay",
        description="Replay the decision log of a run (callbacks.DecisionLog) with other objects.",
    )
    parser.add_argument("log", help="decisions.jsonl of the run")
    parser.add_subclass_arguments(
        Allocator, "allocator", required=False, help="allots the images instead"
    )
    parser.add_subclass_arguments(
        StepSelector, "step_selector", required=False, help="chooses the steps instead"
    )
    parsed = parser.parse_args(sys.argv[2:] if args is None else args)
    built = parser.instantiate(parsed)
    allocator, selector = built.get("allocator"), built.get("step_selector")
    if allocator is None and selector is None:
        parser.error("give --allocator or --step_selector, for instance aegpo.exploration.AllSteps")
    if not Path(built.log).is_file():
        parser.error(f"there is no file {built.log}; add callbacks.DecisionLog to the run")
    try:
        decisions = read_decisions(built.log)
        print(f"{len(decisions)} iterations")
        if allocator is not None:
            print(describe_sizes(compare_sizes(decisions, allocator)))
        if selector is not None:
            print(describe_steps(compare_steps(decisions, selector)))
    except ValueError as error:
        parser.error(str(error))


def describe_sizes(agreement: SizeAgreement) -> str:
    """Put the agreement of group sizes into a sentence."""
    return (
        f"images: {agreement.same:.1%} of the prompts get the same number, "
        f"{agreement.moved:.1%} of the images go to another prompt, "
        f"correlation {agreement.correlation:.3f}"
    )


def describe_steps(agreement: StepAgreement) -> str:
    """Put the agreement of chosen steps into a sentence and a table by step."""
    lines = [
        f"steps: {agreement.same:.1%} of the prompts explore at the same ones, mean overlap "
        f"{agreement.overlap:.1%}",
        "step      " + " ".join(f"{step:>5}" for step in range(len(agreement.logged))),
        "logged    " + " ".join(f"{share:>5.0%}" for share in agreement.logged.tolist()),
        "replayed  " + " ".join(f"{share:>5.0%}" for share in agreement.replayed.tolist()),
    ]
    return "\n".join(lines)
