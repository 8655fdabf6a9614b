"""The bundled prompts: what they ask for is what their metadata says, and splits do not meet."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from typing import Any

import pytest

from aegpo.prompts.sets import bundled_records, bundled_sources, is_bundled
from aegpo.prompts.sets.geneval import COLORS
from aegpo.prompts.sets.nouns import plural
from aegpo.rewards.geneval.clauses import Clause, Clauses, read_clauses
from aegpo.rewards.geneval.instance_segmentation import _NAMES
from aegpo.rewards.ocr import quoted_text
from datamodules.prompt_datamodule import PromptDataModule

SIZES = {
    "animals:train": 620,
    "animals:heldout": 100,
    "geneval:train": 3449,
    "geneval:heldout": 459,
    "ocr:train": 888,
    "ocr:heldout": 132,
}
DIGESTS = {
    "animals:train": "616ba35500d2ab4a",
    "animals:heldout": "21bef7824911216d",
    "geneval:train": "9a74973e48d38a8e",
    "geneval:heldout": "5b173ef7592b3169",
    "ocr:train": "5b7cfd00fe3fc24d",
    "ocr:heldout": "16e1b0bfe6e6ad2c",
}
"""Of the rows as JSON."""
NUMBERS = {"two": 2, "three": 3, "four": 4}


@pytest.mark.parametrize("source", SIZES)
def test_a_split_is_the_same_everywhere(source: str) -> None:
    rows = bundled_records(source)
    assert len(rows) == len({row["prompt"] for row in rows}) == SIZES[source]
    assert {row["split"] for row in rows} == {source.partition(":")[2]}
    assert min(Counter(row["category"] for row in rows).values()) >= 12
    assert rows == bundled_records(source)
    # Runs of different releases are compared: whoever changes prompts on purpose changes this too.
    text = json.dumps(rows, sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == DIGESTS[source]


@pytest.mark.parametrize("name", ["animals", "geneval", "ocr"])
def test_nothing_held_out_is_trained_on(name: str) -> None:
    train, heldout = (
        {combination(row) for row in bundled_records(f"{name}:{split}")}
        for split in ("train", "heldout")
    )
    assert train.isdisjoint(heldout)


def combination(row: dict[str, Any]) -> object:
    """What makes a prompt another one, however it is worded."""
    if "target" in row:
        return row["target"].lower()
    if "include" not in row:
        return re.match(r"an? (.*) (?:in|on|by) an? ", row["prompt"])[1]  # type: ignore[index]
    classes = frozenset(clause["class"] for clause in row["include"])
    if len(classes) == 2:
        return classes  # whichever comes first, in whatever color and place
    clause = row["include"][0]
    return row["category"], clause["class"], clause["count"], clause.get("color")


def read_prompt(prompt: str, labels: set[str]) -> Clauses:
    """GenEval's language read by hand: the inverse of how prompts are made."""
    words = prompt.removeprefix("a photo of ")
    number, _, rest = words.partition(" ")
    if number in NUMBERS:
        (label,) = (one for one in labels if plural(one) == rest)
        count = NUMBERS[number]
        return Clauses((Clause(label, count),), (Clause(label, count + 1),), counting=True)
    first, *more = re.split(r" (and|left of|right of|above|below) (?=an? )", words)
    if not more:
        return Clauses((read_noun(first, labels),))
    link, second = more
    if link == "and":
        return Clauses((read_noun(first, labels), read_noun(second, labels)))
    placed = Clause(read_noun(first, labels).label, 1, relation=link, target=0)
    return Clauses((read_noun(second, labels), placed))


def read_noun(text: str, labels: set[str]) -> Clause:
    article, _, noun = text.partition(" ")
    assert article == ("an" if noun[0] in "aeiou" else "a")
    if noun in labels:
        return Clause(noun, 1)
    color, _, label = noun.partition(" ")
    assert color in COLORS and label in labels
    return Clause(label, 1, color)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_geneval_clauses_say_what_the_prompt_says(split: str) -> None:
    rows = bundled_records(f"geneval:{split}")
    labels = {clause["class"] for row in rows for clause in row["include"]}
    for row in rows:
        assert read_clauses(row) == read_prompt(row["prompt"], labels), row["prompt"]
        assert row["tag"] == row["category"]
    # What the detector calls otherwise is asked for by GenEval's name.
    assert labels.isdisjoint(_NAMES) and len(labels) == 77
    tags = {"single_object", "two_object", "counting", "colors", "position", "color_attr"}
    assert {row["tag"] for row in rows} == tags


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_the_text_to_be_read_stands_in_quotes(split: str) -> None:
    words = {"one_word": 1, "two_words": 2, "three_words": 3}
    for row in bundled_records(f"ocr:{split}"):
        assert quoted_text(row["prompt"]) == row["target"]
        assert len(row["target"].split()) == words[row["category"]]


def test_a_split_is_data_and_an_unknown_one_is_named() -> None:
    data = PromptDataModule("geneval:train", val_file="geneval:heldout", batch_size=4)
    batch = next(iter(data.train_dataloader()))
    assert len(batch) == 4
    assert all(read_clauses(metadata).include for metadata in batch.metadata)
    assert not is_bundled("prompts.jsonl") and not is_bundled("prompts:train")
    assert {"geneval:train", "shapes:hard"} <= set(bundled_sources())
    with pytest.raises(ValueError, match=r"'ocr:training'.*did you mean ocr:train"):
        bundled_records("ocr:training")
