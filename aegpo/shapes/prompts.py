"""The language of the Shapes world: scenes and their texts.

Grammar (the only texts there are, so that `parse` is the exact inverse of `Scene.text`):

    scene    = group [("and" group) | (relation group)]
    group    = ("a" color shape) | (number color plural)
    number   = "two" | "three" | "four"
    relation = "left of" | "right of" | "above" | "below"     (between two single objects)

At most four objects a scene, and two groups always differ in color, so that segmentation by color
is unambiguous.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.9, 0.1, 0.1),
    "green": (0.1, 0.65, 0.2),
    "blue": (0.1, 0.2, 0.9),
    "yellow": (0.95, 0.85, 0.1),
    "magenta": (0.85, 0.1, 0.8),
    "cyan": (0.1, 0.8, 0.85),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "cross")
NUMBERS: dict[str, int] = {"two": 2, "three": 3, "four": 4}
RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below")
OPPOSITES: dict[str, str] = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
}
CATEGORIES: tuple[str, ...] = ("single", "count", "two", "relation")
MAX_OBJECTS = 4

GRAMMAR = (
    'a scene is GROUP, GROUP "and" GROUP or GROUP RELATION GROUP; GROUP is "a COLOR SHAPE" or '
    f'"NUMBER COLOR SHAPES"; COLOR is {", ".join(COLORS)}; SHAPE is {", ".join(SHAPES)}; '
    f"NUMBER is {', '.join(NUMBERS)}; RELATION is {', '.join(RELATIONS)} (single objects only)"
)

_WORDS = {number: word for word, number in NUMBERS.items()}
_PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}


@dataclass(frozen=True)
class Group:
    """Some objects of one color and one shape.

    Args:
        color: A key of `COLORS`.
        shape: One of `SHAPES`.
        count: Number of objects, 1 to 4.

    Raises:
        ValueError: For an unknown color or shape, or a count outside 1 to 4.
    """

    color: str
    shape: str
    count: int = 1

    def __post_init__(self) -> None:
        if self.color not in COLORS:
            raise ValueError(f"unknown color {self.color!r}; choose from {', '.join(COLORS)}")
        if self.shape not in SHAPES:
            raise ValueError(f"unknown shape {self.shape!r}; choose from {', '.join(SHAPES)}")
        if not 1 <= self.count <= MAX_OBJECTS:
            raise ValueError(f"count is {self.count}; a group has 1 to {MAX_OBJECTS} objects")

    @property
    def text(self) -> str:
        """The group in words, such as "a red circle" or "two blue crosses"."""
        if self.count == 1:
            return f"a {self.color} {self.shape}"
        return f"{_WORDS[self.count]} {self.color} {_PLURALS[self.shape]}"


@dataclass(frozen=True)
class Scene:
    """What a prompt asks for: one or two groups, and how the first lies to the second.

    Args:
        groups: One or two groups, of different colors, with at most four objects together.
        relation: One of `RELATIONS`, saying where the first object lies as seen from the second;
            only between two single objects.

    Raises:
        ValueError: If the groups or the relation break a rule above.
    """

    groups: tuple[Group, ...]
    relation: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.groups) <= 2:
            raise ValueError(f"a scene has one or two groups, got {len(self.groups)}")
        if len({group.color for group in self.groups}) != len(self.groups):
            raise ValueError(
                f"both groups are {self.groups[0].color}; the two groups of a scene must differ "
                "in color"
            )
        if self.num_objects > MAX_OBJECTS:
            raise ValueError(
                f"the scene has {self.num_objects} objects; at most {MAX_OBJECTS} fit on the canvas"
            )
        if self.relation is not None:
            if self.relation not in RELATIONS:
                raise ValueError(
                    f"unknown relation {self.relation!r}; choose from {', '.join(RELATIONS)}"
                )
            if [group.count for group in self.groups] != [1, 1]:
                raise ValueError(f"{self.relation!r} needs exactly two single objects")

    @property
    def text(self) -> str:
        """The prompt; `parse` turns it back into this scene."""
        link = f" {self.relation or 'and'} "
        return link.join(group.text for group in self.groups)

    @property
    def category(self) -> str:
        """One of `CATEGORIES`, by form alone.

        So the hard "four red circles" is a "count" and "two red circles and a blue square" a "two".
        """
        if self.relation is not None:
            return "relation"
        if len(self.groups) == 2:
            return "two"
        return "single" if self.groups[0].count == 1 else "count"

    @property
    def num_objects(self) -> int:
        """Number of objects in all groups together."""
        return sum(group.count for group in self.groups)


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> Scene:
    """Read a prompt; the inverse of `Scene.text`.

    Args:
        text: A prompt of the grammar at the top of this module.

    Returns:
        The scene it describes.

    Raises:
        ValueError: If the text leaves the grammar; names the offending word and the grammar.
    """
    words = text.split()
    first, rest = _parse_group(words, text)
    if not rest:
        return Scene((first,))
    relation = None
    if rest[0] == "and":
        rest = rest[1:]
    else:
        relation = next((r for r in RELATIONS if rest[: len(r.split())] == r.split()), None)
        if relation is None:
            raise _error(rest[0], f'"and" or one of {", ".join(RELATIONS)}', text)
        rest = rest[len(relation.split()) :]
    second, rest = _parse_group(rest, text)
    if rest:
        raise _error(rest[0], "the end of the prompt", text)
    try:
        return Scene((first, second), relation)
    except ValueError as error:
        raise ValueError(f"cannot read the prompt {text!r}: {error}") from None


def _parse_group(words: list[str], text: str) -> tuple[Group, list[str]]:
    """Read one group off the front; returns it with the words that are left."""
    number, color, noun = (*words, "", "", "")[:3]
    if number != "a" and number not in NUMBERS:
        raise _error(number, f'"a" or one of {", ".join(NUMBERS)}', text)
    if color not in COLORS:
        raise _error(color, f"one of {', '.join(COLORS)}", text)
    count = 1 if number == "a" else NUMBERS[number]
    nouns = {shape if count == 1 else _PLURALS[shape]: shape for shape in SHAPES}
    if noun not in nouns:
        raise _error(noun, f"one of {', '.join(nouns)}", text)
    return Group(color, nouns[noun], count), words[3:]


def _error(word: str, expected: str, text: str) -> ValueError:
    found = repr(word) if word else "the end of the text"
    return ValueError(
        f"cannot read the prompt {text!r}: found {found} where {expected} belongs. "
        f"The grammar: {GRAMMAR}"
    )


def near_misses(scene: Scene) -> dict[str, Scene]:
    """Scenes that differ from `scene` in exactly one respect, by the name of that respect.

    Args:
        scene: The scene asked for.

    Returns:
        "color" and "shape" (of the first group) always; "count" (one object more in the first
        group, or one fewer where the scene is full) without a relation; "relation" (the opposite
        one) with a relation.
    """
    first, others = scene.groups[0], scene.groups[1:]
    used = {group.color for group in scene.groups}
    colors, start = tuple(COLORS), tuple(COLORS).index(first.color)
    color = next(c for c in colors[start + 1 :] + colors[:start] if c not in used)
    shape = SHAPES[(SHAPES.index(first.shape) + 1) % len(SHAPES)]
    misses = {
        "color": replace(scene, groups=(replace(first, color=color), *others)),
        "shape": replace(scene, groups=(replace(first, shape=shape), *others)),
    }
    if scene.relation is not None:
        misses["relation"] = replace(scene, relation=OPPOSITES[scene.relation])
    else:
        count = first.count + (1 if scene.num_objects < MAX_OBJECTS else -1)
        misses["count"] = replace(scene, groups=(replace(first, count=count), *others))
    return misses
