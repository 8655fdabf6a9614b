from __future__ import annotations

import pytest
import torch

from aegpo.policies.conditioning import Conditioning
from aegpo.policies.embedding_cache import ConditioningCache


def rows(values: list[float], negative: bool = False) -> Conditioning:
    column = torch.tensor(values)
    return Conditioning(
        embeds=column[:, None, None].expand(-1, 3, 2).clone(),
        pooled=column[:, None].clone(),
        mask=column[:, None] > torch.tensor([0.0, 1.0, 2.0]),
        negative=rows([-1.0] * len(values)) if negative else None,
    )


def test_select_takes_every_part_in_the_given_order() -> None:
    chosen = rows([1.0, 2.0, 3.0], negative=True).select(torch.tensor([2, 0, 0, 1]))
    assert chosen.embeds[:, 0, 0].tolist() == [3, 1, 1, 2]
    assert chosen.pooled is not None and chosen.pooled[:, 0].tolist() == [3, 1, 1, 2]
    assert chosen.mask is not None and chosen.mask.sum(1).tolist() == [3, 1, 1, 2]
    assert chosen.negative is not None and len(chosen.negative) == 4


def test_cat_stacks_and_refuses_half_present_parts() -> None:
    both = Conditioning.cat([rows([1.0]), rows([2.0, 3.0])])
    assert both.embeds[:, 0, 0].tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="only 1 of 2 conditionings have negative"):
        Conditioning.cat([rows([1.0], negative=True), rows([2.0])])


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("pooled", torch.zeros(3, 2)),
        ("mask", torch.ones(2, 4, dtype=torch.bool)),
        ("negative", rows([1.0])),
    ],
)
def test_parts_must_agree(part: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"2 rows, but|rows of"):
        Conditioning(embeds=torch.zeros(2, 3, 5), **{part: value})  # type: ignore[arg-type]


class CountingEncoder:
    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, texts: list[str]) -> Conditioning:
        self.calls.append(texts)
        return rows([float(text) for text in texts])


def test_cache_encodes_only_what_is_missing_once() -> None:
    cache, encode = ConditioningCache(10), CountingEncoder()
    assert cache.get(["1", "2", "1"], encode).embeds[:, 0, 0].tolist() == [1, 2, 1]
    assert cache.get(["3", "2"], encode).embeds[:, 0, 0].tolist() == [3, 2]
    assert cache.get(["3", "1"], encode).embeds[:, 0, 0].tolist() == [3, 1]
    assert encode.calls == [["1"], ["2"], ["3"]]


def test_cache_drops_the_oldest_but_never_a_row_of_the_present_batch() -> None:
    cache, encode = ConditioningCache(2), CountingEncoder()
    assert cache.get(["1", "2", "3"], encode).embeds[:, 0, 0].tolist() == [1, 2, 3]
    assert len(cache) == 2
    cache.get(["3", "2"], encode)
    assert encode.calls == [["1"], ["2"], ["3"]]
    cache.get(["1"], encode)
    assert encode.calls[-1] == ["1"]


def test_cache_needs_room() -> None:
    with pytest.raises(ValueError, match="max_texts=0"):
        ConditioningCache(0)
