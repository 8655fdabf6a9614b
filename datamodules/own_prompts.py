"""What a prompt file brings with it: held-out prompts, test prompts, shares of the draws."""

from __future__ import annotations

from typing import Literal

from aegpo.prompts.sets import companion_split, own_shares
from aegpo.prompts.sets.hash_order import shuffled
from datamodules.prompt_dataset import PromptDataset

Auto = Literal["auto"]
AUTO: Auto = "auto"
HELD_OUT_SHARE = 0.1
"""Part of a file's different prompts that are held out."""
MOST_HELD_OUT = 64
"""And how many at most: an evaluation draws several images of each."""


def with_held_out(
    train_file: str, val_file: str | None, column: str
) -> tuple[PromptDataset, PromptDataset | None]:
    """Read the prompts to train on and to hold out.

    Args:
        train_file: A file or a bundled `set:split`.
        val_file: Another; None for no held-out prompts; "auto" for those of `train_file`: the split
            `heldout` of its set, or a tenth of the file's prompts, at most 64, chosen by the hash
            of their texts. These are not trained on.
        column: Field that holds the prompt.

    Returns:
        Training prompts, and held-out ones.

    Raises:
        ValueError: If a file of one prompt is to be divided.
    """
    train = PromptDataset(train_file, column)
    if val_file != AUTO:
        return train, PromptDataset(val_file, column) if val_file else None
    bundled = companion_split(train_file, "heldout")
    if bundled is not None:
        return train, PromptDataset(bundled, column)
    texts = shuffled({record["prompt"] for record in train.records}, "held out")
    if len(texts) < 2:
        raise ValueError(
            f"data.val_file=auto holds out a part of {train_file}, which has one prompt; name "
            "another file, or null for no evaluation"
        )
    held = set(texts[: min(MOST_HELD_OUT, max(1, round(HELD_OUT_SHARE * len(texts))))])
    kept = [record for record in train.records if record["prompt"] not in held]
    out = [record for record in train.records if record["prompt"] in held]
    return train.of(kept), train.of(out)


def final_prompts(
    train_file: str, test_file: str | None, column: str, held_out: PromptDataset | None
) -> PromptDataset | None:
    """Read the prompts of `test` and `predict`.

    Args:
        train_file: What is trained on.
        test_file: A file or `set:split`; "auto" for the split `hard` of the set of `train_file`.
        column: Field that holds the prompt.
        held_out: Taken where there is no other.

    Returns:
        The prompts, if there are any.
    """
    file = companion_split(train_file, "hard") if test_file == AUTO else test_file
    return PromptDataset(file, column) if file else held_out


def shares_of(
    train_file: str, shares: dict[str, float] | Auto | None, known: list[str]
) -> list[float] | None:
    """Find the share of the draws of each category.

    Args:
        train_file: What is trained on.
        shares: By category; "auto" for those of its bundled set, if it has some; None for prompts
            that are drawn alike.
        known: The categories there are.

    Returns:
        A share for each of `known`; None where all prompts are drawn alike.

    Raises:
        ValueError: If the shares name others.
    """
    if isinstance(shares, str):
        shares = own_shares(train_file)
    if shares is None:
        return None
    if sorted(shares) != known:
        raise ValueError(
            f"data.shares names {sorted(shares)}, but the categories of {train_file} are "
            f"{known}; give each of them a share, or auto for those of the file"
        )
    return [shares[name] for name in known]
