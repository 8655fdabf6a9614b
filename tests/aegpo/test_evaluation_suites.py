"""Suites in the benchmarks' own formats, intervals, and what may not stand in one column."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from aegpo.evaluation.intervals import difference_of, score_of
from aegpo.evaluation.protocols import PROTOCOLS, guess_protocol
from aegpo.evaluation.suites import Suite, read_suite


def written(folder: Path, protocol: str) -> Path:
    """A file or folder as the benchmark has it, with two prompts or more."""
    if protocol == "geneval":
        file = folder / "evaluation_metadata.jsonl"
        rows = [
            {
                "tag": "single_object",
                "include": [{"class": "bench", "count": 1}],
                "prompt": "a photo of a bench",
            },
            {
                "tag": "counting",
                "include": [{"class": "dog", "count": 2}],
                "exclude": [{"class": "dog", "count": 3}],
                "prompt": "a photo of two dogs",
            },
        ]
        file.write_text("\n".join(map(json.dumps, rows)))
    elif protocol == "dpg":
        file = folder / "prompts"
        file.mkdir()
        (file / "10.txt").write_text("A long, dense prompt\nof two lines.\n")
        (file / "9.txt").write_text('A "quoted" one, with commas')
    elif protocol == "drawbench":
        file = folder / "DrawBench.csv"
        file.write_text('Prompts,Category\n"A red, round ball.",Colors\nTwo dogs.,Counting\n')
    elif protocol == "parti":
        file = folder / "PartiPrompts.tsv"
        file.write_text(
            'Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\tbiology\n"a" sign\tArtifacts'
            "\tBasic\t\n"
        )
    else:
        file = folder / "dataset"
        file.mkdir()
        (file / "color_val.txt").write_text("a green bench and a red car\na blue bowl\n")
        (file / "non_spatial_val.txt").write_text("a dog runs\n")
        (file / "color.txt").write_text("a prompt of the training\n")
    return file


EXPECTED = {
    "geneval": (["a photo of a bench", "a photo of two dogs"], ["single_object", "counting"]),
    "dpg": (
        ['A "quoted" one, with commas', "A long, dense prompt of two lines."],
        ["all", "all"],
    ),
    "drawbench": (["A red, round ball.", "Two dogs."], ["Colors", "Counting"]),
    "parti": (["bond", '"a" sign'], ["Abstract", "Artifacts"]),
    "t2i_compbench": (
        ["a green bench and a red car", "a blue bowl", "a dog runs"],
        ["color", "color", "non_spatial"],
    ),
}


@pytest.mark.parametrize("protocol", EXPECTED)
def test_a_benchmark_is_read_in_its_own_format(tmp_path: Path, protocol: str) -> None:
    file = written(tmp_path, protocol)
    assert guess_protocol(str(file)) == protocol
    suite = read_suite(str(file))
    assert (suite.prompts, suite.categories) == EXPECTED[protocol]
    assert suite.protocol == protocol
    assert suite.fingerprint == read_suite(str(file)).fingerprint
    assert suite.fingerprint != read_suite(str(file), limit=1).fingerprint


def test_what_the_rewards_read_is_kept(tmp_path: Path) -> None:
    suite = read_suite(str(written(tmp_path, "geneval")))
    assert suite.metadata[1]["exclude"] == [{"class": "dog", "count": 3}]
    table = tmp_path / "dpg_bench.csv"
    table.write_text(
        "item_id,text,proposition_id,dependency,question_natural_language\n"
        "p1,a part,1,0,Is there a parent?\np1,a part,2,1,Is there a child?\np2,other,1,0,Is it?\n"
    )
    suite = read_suite(str(table))
    assert suite.prompts == ["a part", "other"]
    assert suite.metadata[0]["questions"] == ["Is there a parent?", "Is there a child?"]


@pytest.mark.parametrize("protocol", EXPECTED)
def test_a_missing_file_says_where_it_comes_from(protocol: str) -> None:
    with pytest.raises(FileNotFoundError) as refused:
        read_suite("no/such/place", protocol)
    assert PROTOCOLS[protocol].source in str(refused.value)
    assert "\n" not in str(refused.value)


def test_other_files_are_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "drawbench.csv").write_text("text,kind\na,b\n")
    with pytest.raises(ValueError, match="columns text, kind"):
        read_suite(str(tmp_path / "drawbench.csv"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no prompt"):
        read_suite(str(tmp_path / "empty"), "dpg")
    with pytest.raises(ValueError, match="is a folder"):
        read_suite(str(tmp_path), "parti")
    with pytest.raises(ValueError, match="no bundled prompts"):
        read_suite("shapes:heldoutt")


def test_intervals_hold_the_mean_of_the_prompts_behind_them() -> None:
    """Of 200 suites drawn from a known mean, 95 % intervals hold it 95 times in a hundred."""
    draws = np.random.default_rng(1).normal(0.3, 1.0, size=(200, 40))
    scores = [score_of(row.tolist(), ["all"] * 40) for row in draws]
    assert 0.89 <= np.mean([one.low <= 0.3 <= one.high for one in scores]) <= 0.98
    pairs = [score_of(row.tolist(), ["a"] * 30 + ["b"] * 10, "categories") for row in draws[:100]]
    assert 0.85 <= np.mean([one.low <= 0.3 <= one.high for one in pairs]) <= 0.99


def test_pairs_are_of_the_same_prompts() -> None:
    prompts = np.random.default_rng(0).normal(size=50)  # they differ much more than the models
    base, tuned = prompts.tolist(), (prompts + 0.1).tolist()
    apart = difference_of(tuned, base, ["all"] * 50)
    assert apart.low == pytest.approx(0.1) and apart.high == pytest.approx(0.1)
    assert score_of(base, ["all"] * 50).high - score_of(base, ["all"] * 50).low > 0.3
    base[3] = math.nan
    assert difference_of(tuned, base, ["all"] * 50).prompts == 49


def test_a_score_of_one_prompt_or_none_has_no_interval() -> None:
    one = score_of([0.5, math.nan], ["a", "b"])
    assert one.mean == 0.5 and math.isnan(one.low) and one.prompts == 1
    assert math.isnan(score_of([math.nan], ["a"]).mean)
    alone = score_of([0.5, 0.0, 1.0], ["a", "b", "b"], "categories")  # one prompt of a category
    assert alone.mean == 0.5 and alone.low == 0.25 and alone.high == 0.75


def test_prompts_have_another_fingerprint_in_another_order() -> None:
    one, other = (Suite("a", "plain", list(texts), [{}, {}]) for texts in ("ab", "ba"))
    assert one.fingerprint != other.fingerprint
