"""Animals at something, somewhere: for rewards of looks, which need no more than a subject.

The form is that of DDPO's prompts (arXiv 2305.13301), an animal at an activity; the words are ours.
"""

from __future__ import annotations

import itertools
from typing import Any

from aegpo.prompts.sets.hash_order import SPLITS, divide, pick
from aegpo.prompts.sets.nouns import with_article

__all__ = ["ANIMALS", "SPLITS", "records"]

ANIMALS: dict[str, tuple[str, ...]] = {
    "mammal": (
        *("fox", "otter", "badger", "hedgehog", "lynx", "moose", "capybara", "sloth", "kangaroo"),
        *("red panda", "polar bear", "hippo", "camel", "goat", "donkey", "mouse"),
    ),
    "bird": (
        *("owl", "flamingo", "penguin", "toucan", "heron", "puffin", "raven", "peacock", "duck"),
        *("hummingbird", "pelican", "woodpecker"),
    ),
    "reptile_or_frog": ("tortoise", "chameleon", "iguana", "tree frog", "crocodile", "gecko"),
    "sea_animal": ("octopus", "sea turtle", "seahorse", "lobster", "walrus", "manta ray"),
}
"""Animals by category."""

_ACTIVITIES = (
    *("reading a newspaper", "playing the violin", "painting a landscape", "baking bread"),
    *("riding a scooter", "drinking tea", "watering flowers", "flying a kite", "knitting a scarf"),
    *("fixing a clock", "looking through a telescope", "carrying a lantern", "taking a nap"),
    *("building a sandcastle", "typing a letter", "dancing", "wearing a raincoat", "fishing"),
)
_PLACES = (
    *("in a snowy forest", "on a tropical beach", "in a cozy kitchen", "on a mountain top"),
    *("in a field of lavender", "on a city roof at night", "in an old library", "by a calm lake"),
    *("in a desert at sunset", "on a wooden pier", "in a greenhouse", "on a foggy street"),
)


def records(split: str) -> list[dict[str, Any]]:
    """The prompts of a split; held-out prompts pair animals and activities that training does not.

    Args:
        split: "train" or "heldout".

    Returns:
        Dicts with "prompt", "category" (the kind of animal) and "split".

    Raises:
        ValueError: For another split.
    """
    return [
        {
            "prompt": f"{with_article(animal)} {activity} {place}",
            "category": category,
            "split": split,
        }
        for category, animals in ANIMALS.items()
        for animal, activity in divide(
            itertools.product(animals, _ACTIVITIES), split, 25, f"animals/{category}"
        )
        for place in [pick(_PLACES, (animal, activity), "place")]
    ]
