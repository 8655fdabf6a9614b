from collections import Counter

import pytest
from tiny_training import tiny_data

from aegpo.prompts import PromptBatch


def test_an_epoch_has_the_promised_batches(tmp_path):
    batches = list(tiny_data(tmp_path, batches_per_epoch=3).train_dataloader())
    assert len(batches) == 3
    assert all(isinstance(batch, PromptBatch) and len(batch) == 4 for batch in batches)


def test_evaluation_images_are_fixed_and_divided_among_categories(tmp_path):
    data = tiny_data(tmp_path, val_images=10, val_batch_size=3)
    first, second = ([batch for batch in data.val_dataloader()] for _ in range(2))
    assert [batch.prompts for batch in first] == [batch.prompts for batch in second]
    assert [len(batch) for batch in first] == [3, 3, 3, 1]  # the last one is not padded
    categories = Counter(m["category"] for batch in first for m in batch.metadata)
    assert categories == {"warm": 5, "cold": 5}
    assert [i for batch in first for i in batch.index.tolist()] == list(range(10))


def test_shares_must_name_every_category(tmp_path):
    with pytest.raises(ValueError, match=r"categories of .* are \['cold', 'warm'\]"):
        tiny_data(tmp_path, shares={"warm": 1.0})


def test_the_sampler_state_travels_with_the_data_module(tmp_path):
    first, second = tiny_data(tmp_path), tiny_data(tmp_path)
    next(iter(first.train_dataloader()))
    second.load_state_dict(first.state_dict())
    assert first.sampler.draw().tolist() == second.sampler.draw().tolist()
