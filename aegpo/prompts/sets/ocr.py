"""Prompts that ask for a text in the picture, between double quotes: on signs, covers, shirts."""

from __future__ import annotations

import itertools
from typing import Any

from aegpo.prompts.sets.hash_order import SPLITS, divide, pick

__all__ = ["CATEGORIES", "SPLITS", "records"]

CATEGORIES = ("one_word", "two_words", "three_words")

_WORDS = (
    *("Welcome", "Bakery", "Library", "Museum", "Exit", "Danger", "Fragile", "Closed", "Espresso"),
    *("Harvest", "Journey", "Kitchen", "Lantern", "Marathon", "Nebula", "Orchard", "Pharmacy"),
    *("Quartz", "Recycle", "Saturday", "Theater", "Umbrella", "Volcano", "Workshop", "Yesterday"),
    *("Zeppelin", "Avalanche", "Breakfast", "Compass", "Discovery", "Engineer", "Festival"),
    *("Gravity", "Horizon", "Island", "Jubilee", "Keyboard", "Laundry", "Midnight", "Notebook"),
    *("Octopus", "Passport", "Quiet", "Railway", "Sunflower", "Tomorrow", "Universe", "Victory"),
    *("Waterfall", "Xylophone", "Yoga", "Zebra", "Antique", "Bicycle", "Chocolate", "Dolphin"),
    *("Elevator", "Firefly", "Garden", "Hospital"),
)
_ADJECTIVES = (
    *("Ancient", "Brave", "Crooked", "Daily", "Electric", "Frozen", "Golden", "Hidden", "Iron"),
    *("Jolly", "Last", "Modern", "Northern", "Open", "Purple", "Royal", "Silent", "Tiny", "Urban"),
    "Wild",
)
_NOUNS = (
    *("Anchor", "Bridge", "Cactus", "Dragon", "Engine", "Forest", "Giant", "Harbor", "Island"),
    *("Jungle", "Kettle", "Lion", "Mountain", "Needle", "Owl", "Planet", "Queen", "River"),
    *("Sparrow", "Tiger", "Unicorn", "Valley", "Whale", "Wizard"),
)
_PLACES = ("Avenue", "Cafe", "Club", "Festival", "Market", "Press", "Station", "Theater")
_SURFACES = (
    'a wooden sign in front of a house that reads "{}"',
    'a neon sign above a bar at night that says "{}"',
    'the cover of a hardcover book on a table with the title "{}"',
    'a white T-shirt on a hanger with the words "{}" printed on it',
    'a coffee mug on a desk with the text "{}"',
    'a chalkboard on a sidewalk with "{}" written in white chalk',
    'a birthday cake with "{}" written in icing',
    'a movie poster in a subway station with the title "{}"',
    'a blue road sign beside a highway that says "{}"',
    'a cardboard box on a doorstep labeled "{}"',
    'graffiti on a brick wall that spells "{}"',
    'a newspaper on a bench with the headline "{}"',
    'a brass plate on a door engraved with "{}"',
    'a robot holding a banner that reads "{}"',
    'a shop window with the name "{}" in gold letters',
    'a postage stamp with the inscription "{}"',
    'the side of a delivery van painted with "{}"',
    'a hot air balloon with "{}" on its envelope',
    'a sticky note on a refrigerator that says "{}"',
    'the screen of an old computer showing the text "{}"',
)


def records(split: str) -> list[dict[str, Any]]:
    """The prompts of a split; no text of the held-out prompts occurs in training.

    Args:
        split: "train" or "heldout".

    Returns:
        Dicts with "prompt", "target" (the text to be written), "category" (its number of words)
        and "split".

    Raises:
        ValueError: For another split.
    """
    texts = {
        "one_word": divide(_WORDS, split, 12, "one word"),
        "two_words": divide(_joined(_ADJECTIVES, _NOUNS), split, 60, "two words"),
        "three_words": divide(
            _joined(_ADJECTIVES, _NOUNS, _PLACES), split, 60, "three words", train=420
        ),
    }
    return [
        {"prompt": surface.format(target), "target": target, "category": category, "split": split}
        for category in CATEGORIES
        for text in texts[category]
        for surface, target in [(pick(_SURFACES, text, "surface"), _spelled(text))]
    ]


def _joined(*lists: tuple[str, ...]) -> list[str]:
    return [" ".join(words) for words in itertools.product(*lists)]


def _spelled(text: str) -> str:
    """Half of the texts in capitals."""
    return pick((text, text.upper()), text, "capitals")
