"""How the public benchmarks are run and averaged, and where their files come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Averaging = Literal["prompts", "categories", "separate"]
"""What the score of a suite is: the mean over its prompts; the mean of the means of its categories;
or nothing, because the benchmark gives one score for each category and none for all."""


@dataclass(frozen=True)
class Protocol:
    """How a benchmark is run.

    Args:
        title: Its name.
        images_per_prompt: Images that it asks for.
        averaging: How scores become one.
        judge: Who judges in the publication; other rewards give other numbers.
        source: Where its file comes from, in one line.
        columns: Names that the column of the prompt may have, in files that have columns.
        category: Column of the category.
    """

    title: str
    images_per_prompt: int
    averaging: Averaging
    judge: str
    source: str
    columns: tuple[str, ...] = ()
    category: str = ""


PLAIN = "plain"

PROTOCOLS = {
    PLAIN: Protocol(
        title="prompts",
        images_per_prompt=4,
        averaging="prompts",
        judge="the rewards of the config",
        source="a bundled split, such as shapes:heldout, or a .txt, .jsonl or .csv file of prompts",
    ),
    "geneval": Protocol(
        title="GenEval (arXiv 2310.11513)",
        images_per_prompt=4,
        averaging="categories",
        judge="Mask2Former and CLIP: aegpo.rewards.GenEval on the detector that it is given",
        source="prompts/evaluation_metadata.jsonl of github.com/djghosh13/geneval, 553 lines",
        columns=("prompt",),
        category="tag",
    ),
    "dpg": Protocol(
        title="DPG-Bench (arXiv 2403.05135)",
        images_per_prompt=4,
        averaging="prompts",
        judge="mPLUG-large's answers to the questions of dpg_bench.csv; aegpo.rewards.VLMJudge asks"
        " another model",
        source="the folder dpg_bench/prompts, 1,065 .txt files, or dpg_bench/dpg_bench.csv of "
        "github.com/TencentQQGYLab/ELLA",
        columns=("text",),
    ),
    "drawbench": Protocol(
        title="DrawBench (arXiv 2205.11487)",
        images_per_prompt=8,
        averaging="prompts",
        judge="people, who choose between sets of 8 images; later papers average a learned reward",
        source="DrawBench as CSV with the columns Prompts and Category, 200 rows: the sheet that "
        "imagen.research.google links to, or datasets/shunk031/DrawBench of the hub",
        columns=("Prompts", "prompts", "Prompt", "prompt"),
        category="category",
    ),
    "parti": Protocol(
        title="PartiPrompts (arXiv 2206.10789)",
        images_per_prompt=1,
        averaging="prompts",
        judge="people, who choose between two images; later papers average a learned reward",
        source="PartiPrompts.tsv of github.com/google-research/parti, 1,632 rows",
        columns=("Prompt", "prompt"),
        category="category",
    ),
    "t2i_compbench": Protocol(
        title="T2I-CompBench (arXiv 2307.06350)",
        images_per_prompt=10,
        averaging="separate",
        judge="BLIP-VQA (color, shape, texture), UniDet (spatial, numeracy), CLIP (non_spatial), "
        "all three (complex)",
        source="examples/dataset of github.com/Karine-Huang/T2I-CompBench: the folder, of which "
        "the *_val.txt count, or one of its files, 300 lines each",
    ),
}
"""By the name that `aegpo evaluate --protocol` takes."""


def guess_protocol(suite: str) -> str:
    """Say which benchmark a file is by its name; nothing is read but the names in a folder.

    Args:
        suite: A bundled split, a file or a folder.

    Returns:
        A key of `PROTOCOLS`; "plain" where the name says nothing.
    """
    path = Path(suite).expanduser()
    name = path.name.lower()
    if name == "evaluation_metadata.jsonl":
        return "geneval"
    if name.startswith("dpg_bench"):
        return "dpg"
    if "drawbench" in name:
        return "drawbench"
    if "partiprompts" in name:
        return "parti"
    if path.is_dir():
        return "t2i_compbench" if any(path.glob("*_val.txt")) else "dpg"
    if name.endswith("_val.txt"):
        return "t2i_compbench"
    return PLAIN


def missing_suite(suite: str, protocol: str) -> str | None:
    """Say what is wrong with the name of a suite, before it is read.

    Args:
        suite: A bundled split, a file or a folder.
        protocol: A key of `PROTOCOLS`, or "auto".

    Returns:
        One line; None if nothing shows.
    """
    if protocol != "auto" and protocol not in PROTOCOLS:
        return f"--protocol {protocol} is not known; choose auto, {', '.join(PROTOCOLS)}"
    path = Path(suite).expanduser()
    if path.exists() or (":" in suite and "/" not in suite and not path.suffix):
        return None  # a bundled split that is not there is told with those that are
    name = guess_protocol(suite) if protocol == "auto" else protocol
    about = PROTOCOLS[name]
    what = "" if name == PLAIN else f"{about.title}: "
    return f"--suite {suite} does not exist (cwd is {Path.cwd()}); give {what}{about.source}"
