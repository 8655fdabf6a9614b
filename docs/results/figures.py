"""Draws the study's figures again, from the curves beside this file.

    python docs/results/figures.py

They are those of `aegpo compare`: at most six curves, and every difference with its interval.
"""

from __future__ import annotations

from across_studies import FOLDER, LONG, read

from aegpo.study.comparison import Target, summarize
from lightning_modules.commands.compare.figures import draw_curves, draw_differences
from lightning_modules.commands.compare.settings import Comparison, Overlays

BUDGET = 40_000
CURVES = ["flow_grpo", "aegpo", "window_0_3", "random_steps", "diffusion_nft", "aegpo_nft"]


def main() -> None:
    """Write `study_judge.png` and `study_judge_differences.png`."""
    runs = read("judge")
    ends = {name: int(min(curve.cost[-1] for curve in runs[name].values())) for name in runs}
    settings = Comparison(
        methods={name: Overlays() for name in runs},
        base="configs/shapes.yaml",
        budget=BUDGET,
        metric="val/shapes_judge",
        reference="flow_grpo",
        budgets={name: end for name, end in ends.items() if end > BUDGET},
        curves=CURVES,
    )
    settings.validate()
    target = Target(BUDGET, reference_budget=LONG)
    score, rows = summarize(runs, settings.reference, target, settings.budgets)
    draw_curves(settings, runs, score).savefig(FOLDER / "study_judge.png", dpi=100)
    differences = draw_differences(settings, rows, score)
    differences.savefig(FOLDER / "study_judge_differences.png", dpi=100)


if __name__ == "__main__":
    main()
