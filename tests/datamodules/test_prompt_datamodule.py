from collections import Counter

import pytest
from tiny_training import tiny_data

from aegpo.prompts import PromptBatch
from datamodules.prompt_datamodule import PromptDataModule
from datamodules.prompt_dataset import PromptDataset


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


def of_file(tmp_path, lines, **settings):
    file = tmp_path / "own.txt"
    file.write_text("\n".join(lines))
    return PromptDataModule(str(file), **{"batch_size": 1} | settings)


def texts(prompts):
    return [record["prompt"] for record in prompts.records]


@pytest.mark.filterwarnings("ignore:.*of them different")
def test_a_file_brings_its_own_held_out_prompts(tmp_path):
    lines = [f"prompt {number}" for number in range(50)]
    data = of_file(
        tmp_path, [*lines, *lines[:20]], val_file="auto", test_file="auto", shares="auto"
    )
    held, trained = texts(data.val_prompts), texts(data.train_prompts)
    assert len(set(held)) == 5 and not set(held) & set(trained)  # also of what occurs twice
    assert sorted(held + trained) == sorted([*lines, *lines[:20]])
    assert texts(data.test_prompts) == held and len(data.sampler.shares) == 1
    again = of_file(tmp_path, sorted(lines, reverse=True), val_file="auto")
    assert set(texts(again.val_prompts)) == set(held)  # by their texts, not by their places
    assert [data.train_prompts[row]["index"] for row in (0, 1)] == [0, 1]
    many = of_file(tmp_path, [f"{number}" for number in range(2000)], val_file="auto")
    assert len(many.val_prompts) == 64 and len(many.train_prompts) == 1936
    few = of_file(tmp_path, ["one", "two"], val_file="auto")
    assert (len(few.val_prompts), len(few.train_prompts)) == (1, 1)
    with pytest.raises(ValueError, match="has one prompt; name another file, or null"):
        of_file(tmp_path, ["one", "one"], val_file="auto")


def test_a_bundled_set_brings_its_splits_and_shares():
    own = {"val_file": "auto", "test_file": "auto", "shares": "auto"}
    shapes = PromptDataModule("shapes:train", **own)
    assert texts(shapes.val_prompts) == texts(PromptDataset("shapes:heldout"))
    assert texts(shapes.test_prompts) == texts(PromptDataset("shapes:hard"))
    given = {"single": 0.4, "count": 0.2, "two": 0.2, "relation": 0.2}
    named = PromptDataModule("shapes:train", shares=given)
    assert shapes.sampler.shares.tolist() == named.sampler.shares.tolist()
    assert shapes.sampler.draw().tolist() == named.sampler.draw().tolist()
    animals = PromptDataModule("animals:train", **own)
    assert texts(animals.test_prompts) == texts(animals.val_prompts)
    assert texts(animals.val_prompts) == texts(PromptDataset("animals:heldout"))
    hard = PromptDataModule("shapes:hard", **own)  # no training split, so it has no shares
    assert len(hard.sampler.shares) == 1


def test_the_sampler_state_travels_with_the_data_module(tmp_path):
    first, second = tiny_data(tmp_path), tiny_data(tmp_path)
    next(iter(first.train_dataloader()))
    second.load_state_dict(first.state_dict())
    assert first.sampler.draw().tolist() == second.sampler.draw().tolist()
