"""Prompts of GenEval's six kinds (Ghosh et al. 2023, arXiv 2310.11513), with its clauses.

They are made here from COCO's classes and GenEval's colors and relations, not taken from the
benchmark. There are few ways to say "a photo of a dog", though, so some of them are also among its
553: its score after training on these prompts is not one of unseen prompts.
"""

from __future__ import annotations

import itertools
from typing import Any

from aegpo.prompts.sets.hash_order import SPLITS, divide, pick, shuffled
from aegpo.prompts.sets.nouns import plural, with_article

COLORS = (
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
)
RELATIONS = ("left of", "right of", "above", "below")
__all__ = ["CATEGORIES", "CLASSES", "SPLITS", "records"]
CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""GenEval's tags."""
SHARES: dict[str, float] = {
    "position": 7,
    "counting": 5,
    "color_attr": 3,
    "colors": 1,
    "two_object": 1,
    "single_object": 0.1,
}
"""Of the draws of training, as in Flow-GRPO; single objects, which models draw already, get few."""
CLASSES: tuple[str, ...] = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    *("traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat"),
    *("dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack"),
    *("umbrella", "handbag", "tie", "suitcase", "frisbee", "snowboard", "sports ball", "kite"),
    *("baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle"),
    *("wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich"),
    *("orange", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse"),
    *("tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink"),
    *("refrigerator", "book", "clock", "vase", "teddy bear", "hair drier", "toothbrush"),
)
"""COCO's classes under GenEval's names, less three without a singular to count."""
_NUMBERS = {2: "two", 3: "three", 4: "four"}
_PAIRS_HELD_OUT = 400


def records(split: str) -> list[dict[str, Any]]:
    """The prompts of a split with GenEval's clauses.

    No object, number of objects, colored object or pair of objects (whichever is named first) of
    the held-out prompts occurs in training's prompts of the same category; the pairs of all three
    categories that have them are held out together.

    Args:
        split: "train" or "heldout".

    Returns:
        Dicts with "prompt", "category", "split" and the fields of GenEval's files: "tag" (the
        category), "include", and for counting "exclude".

    Raises:
        ValueError: For another split.
    """
    training = split == "train"
    pairs = divide(itertools.combinations(CLASSES, 2), split, _PAIRS_HELD_OUT, "pairs")
    things = [name for name in CLASSES if name != "person"]  # people have no one color
    colored_pairs = [pair for pair in pairs if "person" not in pair]
    made = {
        "single_object": [_single(name) for name in divide(CLASSES, split, 13, "single")],
        "two_object": [_two(pair) for pair in _some(pairs, "two", 600 if training else 100)],
        "counting": [
            _counting(name, count)
            for name, count in divide(itertools.product(CLASSES, _NUMBERS), split, 46, "counting")
        ],
        "colors": [
            _colored(name, color)
            for name, color in divide(itertools.product(things, COLORS), split, 100, "colors", 600)
        ],
        "position": [
            _position(pair) for pair in _some(pairs, "position", 1000 if training else 100)
        ],
        "color_attr": [
            _two_colors(pair)
            for pair in _some(colored_pairs, "color_attr", 1000 if training else 100)
        ],
    }
    return [
        {**row, "category": category, "tag": category, "split": split}
        for category in CATEGORIES
        for row in made[category]
    ]


def _some(pairs: list[tuple[str, str]], key: str, size: int) -> list[tuple[str, str]]:
    """The first pairs of the hash order, half of them turned around."""
    chosen = shuffled(pairs, key)[:size]
    return [pair if pick((True, False), pair, f"{key} order") else pair[::-1] for pair in chosen]


def _single(name: str) -> dict[str, Any]:
    return {"prompt": f"a photo of {with_article(name)}", "include": [{"class": name, "count": 1}]}


def _two(pair: tuple[str, str]) -> dict[str, Any]:
    return {
        "prompt": f"a photo of {with_article(pair[0])} and {with_article(pair[1])}",
        "include": [{"class": name, "count": 1} for name in pair],
    }


def _counting(name: str, count: int) -> dict[str, Any]:
    return {
        "prompt": f"a photo of {_NUMBERS[count]} {plural(name)}",
        "include": [{"class": name, "count": count}],
        "exclude": [{"class": name, "count": count + 1}],
    }


def _colored(name: str, color: str) -> dict[str, Any]:
    return {
        "prompt": f"a photo of {with_article(f'{color} {name}')}",
        "include": [{"class": name, "count": 1, "color": color}],
    }


def _position(pair: tuple[str, str]) -> dict[str, Any]:
    placed, target = pair
    relation = pick(RELATIONS, pair, "relation")
    return {
        "prompt": f"a photo of {with_article(placed)} {relation} {with_article(target)}",
        "include": [
            {"class": target, "count": 1},
            {"class": placed, "count": 1, "position": [relation, 0]},
        ],
    }


def _two_colors(pair: tuple[str, str]) -> dict[str, Any]:
    colors = pick(tuple(itertools.permutations(COLORS, 2)), pair, "two colors")
    named = [f"{color} {name}" for color, name in zip(colors, pair, strict=True)]
    return {
        "prompt": f"a photo of {with_article(named[0])} and {with_article(named[1])}",
        "include": [
            {"class": name, "count": 1, "color": color}
            for color, name in zip(colors, pair, strict=True)
        ],
    }
