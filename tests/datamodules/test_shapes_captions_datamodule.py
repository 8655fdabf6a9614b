"""Batches for contrastive training: exclusive, fresh, repeatable, and blind to the held-out."""

from __future__ import annotations

import pytest
import torch

from aegpo.rewards.shapes.judge import ShapesJudge
from aegpo.shapes.captions import exclusive
from aegpo.shapes.prompts import parse
from aegpo.shapes.splits import split
from datamodules.shapes_captions_datamodule import ShapesCaptionsDataModule


def test_batches_hold_no_two_captions_of_one_picture() -> None:
    data = ShapesCaptionsDataModule(batch_size=48, num_batches=3, seed=1)
    batches = list(data.train_dataloader())
    assert [len(captions) for _, captions in batches] == [48, 48, 48]
    for images, captions in batches:
        assert images.shape == (48, 3, 32, 32)
        scenes = [parse(caption) for caption in captions]
        assert exclusive(scenes) == scenes
        assert ShapesJudge()(images, captions, [{}] * 48).mean() > 0.99
    assert len({caption for _, captions in batches for caption in captions}) > 100
    again = list(ShapesCaptionsDataModule(48, 3, seed=1).train_dataloader())
    assert all(
        torch.equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(batches, again, strict=True)
    )
    other = next(iter(ShapesCaptionsDataModule(48, 1, seed=2).train_dataloader()))
    assert other[1] != batches[0][1]


def test_training_never_draws_a_held_out_text_and_validation_only_those() -> None:
    data = ShapesCaptionsDataModule(batch_size=64, num_batches=1, num_validation_batches=2)
    held_out = {scene.text for scene in split("heldout")}
    hard = {scene.text for scene in split("hard")}
    assert not {scene.text for scene in data.scenes} & (held_out | hard)
    first, second = data.val_dataloader()
    assert set(first[1]) == set(second[1]) <= held_out
    assert len(first[1]) == len(exclusive(split("heldout"))) == 91
    assert not torch.equal(first[0].sum(0), second[0].sum(0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 1}, "batch_size=1 must be at least 2"),
        ({"batch_size": 2000}, "batch_size=2000 must be at least 2.* at most"),
        ({"num_batches": 0}, "num_batches=0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShapesCaptionsDataModule(**arguments)
