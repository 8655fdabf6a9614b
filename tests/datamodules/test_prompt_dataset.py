import pytest

from datamodules.prompt_dataset import PromptDataset


def test_reads_text_lines_and_skips_blank_ones(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a red circle\n\n  a blue square  \n")
    dataset = PromptDataset(str(file))
    assert [dataset[row]["prompt"] for row in range(len(dataset))] == [
        "a red circle",
        "a blue square",
    ]
    assert dataset[1]["index"] == 1


def test_reads_json_lines_with_a_column_and_keeps_the_rest_as_metadata(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"text": "a cat", "category": "animal"}\n{"text": "a car"}\n')
    dataset = PromptDataset(str(file), column="text")
    assert dataset[0] == {"prompt": "a cat", "index": 0, "metadata": {"category": "animal"}}
    assert dataset[1]["metadata"] == {}


def test_reads_csv(tmp_path):
    file = tmp_path / "prompts.csv"
    file.write_text("category,prompt\nanimal,a cat\n")
    assert PromptDataset(str(file))[0]["metadata"] == {"category": "animal"}


def test_one_bad_row_costs_a_warning_and_not_the_run(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a cat"}\n{"prompt": \n{"prompt": ""}\n[1]\n{"prompt": "a dog"}\n')
    with pytest.warns(UserWarning) as warnings:
        dataset = PromptDataset(str(file))
    assert len(dataset) == 2
    assert [":2: skipped" in str(warning.message) for warning in warnings] == [True, False, False]


@pytest.mark.parametrize(
    ("name", "text", "column", "error", "message"),
    [
        ("missing.txt", None, "prompt", FileNotFoundError, "does not exist"),
        ("empty.txt", "\n\n", "prompt", ValueError, "holds no prompt"),
        ("empty.jsonl", "", "prompt", ValueError, "holds no prompt"),
        ("column.csv", "prompt\na cat\n", "caption", ValueError, "no column 'caption'"),
        ("prompts.parquet", "x", "prompt", ValueError, "accepted are .txt"),
    ],
)
def test_unusable_files_are_named(tmp_path, name, text, column, error, message):
    file = tmp_path / name
    if text is not None:
        file.write_text(text)
    with pytest.raises(error, match=message):
        PromptDataset(str(file), column=column)


def test_bundled_splits_are_named_like_files():
    train, heldout = PromptDataset("shapes:train"), PromptDataset("shapes:heldout")
    texts = {row["prompt"] for row in train.records}
    assert texts.isdisjoint(row["prompt"] for row in heldout.records)
    assert {row["category"] for row in train.records} == {"single", "count", "two", "relation"}
