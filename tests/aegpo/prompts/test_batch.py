"""PromptBatch: rows stay together."""

from __future__ import annotations

import pytest
import torch

from aegpo.prompts import PromptBatch


def batch() -> PromptBatch:
    return PromptBatch.collate(
        [
            {"prompt": text, "index": row, "metadata": {"category": text[0]}}
            for text, row in (("ab", 7), ("cd", 2), ("ef", 5))
        ]
    )


def test_collate_keeps_the_order():
    made = batch()
    assert len(made) == 3
    assert made.prompts == ["ab", "cd", "ef"]
    assert made.index.tolist() == [7, 2, 5] and made.index.dtype == torch.int64
    assert made.metadata == [{"category": "a"}, {"category": "c"}, {"category": "e"}]


@pytest.mark.parametrize("rows", [[2, 0, 2], torch.tensor([2, 0, 2])])
def test_select_and_repeat(rows):
    picked = batch().select(rows)
    assert picked.prompts == ["ef", "ab", "ef"]
    assert picked.index.tolist() == [5, 7, 5]
    assert [row["category"] for row in picked.metadata] == ["e", "a", "e"]
    repeated = batch().repeat(torch.tensor([2, 0, 2]))
    assert repeated.prompts == picked.prompts and torch.equal(repeated.index, picked.index)


def test_select_nothing():
    assert len(batch().select([])) == 0


def test_to_moves_the_index():
    assert batch().to("meta").index.device.type == "meta"


def test_rows_must_agree():
    with pytest.raises(ValueError, match="2 prompts were given with index of shape"):
        PromptBatch(["a", "b"], torch.tensor([1]), [{}, {}])
    with pytest.raises(ValueError, match="1 metadata"):
        PromptBatch(["a", "b"], torch.tensor([1, 2]), [{}])
    with pytest.raises(ValueError, match="int64"):
        PromptBatch(["a"], torch.tensor([1.0]), [{}])
