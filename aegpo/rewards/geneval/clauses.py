"""GenEval's arithmetic: found objects against the clauses of a prompt. No model, no pixels.

GenEval (Ghosh et al. 2023, arXiv 2310.11513) describes each prompt by clauses. An *include* clause
asks for objects of a class, perhaps of a color, perhaps in a position to the objects of an earlier
clause; an *exclude* clause bounds their number:

    {"tag": "position", "include": [{"class": "dog", "count": 1},
                                    {"class": "cat", "count": 1, "position": ["left of", 0]}]}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from aegpo.prompts.sets.geneval import COLORS, RELATIONS

CONFIDENCE = 0.3
"""An object counts if its score is above this."""
COUNTING_CONFIDENCE = 0.9
"""The same for prompts with the tag "counting"."""
MAX_OBJECTS = 16
"""Objects of one class that count at most: those with the highest scores."""
POSITION_THRESHOLD = 0.1
"""Share of the two objects' sides by which centers must differ at all."""
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Clause:
    """One clause of a prompt.

    Args:
        label: Class of the objects.
        count: How many; in an exclude clause the first number that is too many.
        color: One of `COLORS`, or None for any.
        relation: One of `RELATIONS`, or None for anywhere.
        target: Number of the earlier include clause that `relation` refers to.
    """

    label: str
    count: int
    color: str | None = None
    relation: str | None = None
    target: int = 0


@dataclass(frozen=True)
class Clauses:
    """What a prompt asks for.

    Args:
        include: Clauses that must all hold; at least one.
        exclude: Clauses of which none may hold.
        counting: Whether objects need `COUNTING_CONFIDENCE` to count.
    """

    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()
    counting: bool = False

    @property
    def labels(self) -> set[str]:
        """Classes that the clauses speak of."""
        return {clause.label for clause in (*self.include, *self.exclude)}


@dataclass(frozen=True)
class DetectedObject:
    """One object in a picture.

    Args:
        label: Its class.
        score: The detector's confidence, in [0, 1].
        box: Left, top, right and bottom edge in pixels, y downwards.
        color: One of `COLORS`, or None where no clause asks for it.
        mask: Its pixels in the picture, bool, shape (H, W); None where nobody looks at them.
    """

    label: str
    score: float
    box: Box
    color: str | None = None
    mask: npt.NDArray[np.bool_] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class ClauseScores:
    """A picture against its clauses.

    Args:
        graded: The training reward of Flow-GRPO (arXiv 2505.05470): the mean over what the include
            clauses ask of ``1 - |requested - found| / requested`` for a number of objects, the same
            for objects of the color, and 1 or 0 for a position. At most 1; many surplus objects
            make it negative. Exclude clauses do not enter.
        strict: Whether the numbers are exact, the colors and positions right, and no exclude
            clause holds.
        accurate: GenEval's own verdict: as `strict`, but surplus objects are left to the exclude
            clauses, and only the most confident ones must have the color and position.
    """

    graded: float
    strict: bool
    accurate: bool


def read_clauses(metadata: Mapping[str, Any]) -> Clauses:
    """Read the clauses in a prompt's metadata.

    Args:
        metadata: As in GenEval's prompt file: `include`, and perhaps `exclude` and `tag`.

    Returns:
        The clauses.

    Raises:
        ValueError: If there is no include clause or one is malformed; says which.
    """
    include, exclude = metadata.get("include") or [], metadata.get("exclude") or []
    if not isinstance(include, list) or not isinstance(exclude, list) or not include:
        raise ValueError(
            "the prompt's metadata has no list of GenEval clauses 'include' (it has "
            f"{sorted(metadata) or 'nothing'}); use prompts such as "
            '{"prompt": "a dog", "include": [{"class": "dog", "count": 1}]}'
        )
    return Clauses(
        include=tuple(_read_clause(raw, place) for place, raw in enumerate(include)),
        exclude=tuple(_read_clause(raw, 0) for raw in exclude),
        counting=metadata.get("tag") == "counting",
    )


def _read_clause(raw: Any, place: int) -> Clause:
    """Read the clause at a place of its list, of which earlier ones can be targets."""
    if not isinstance(raw, dict) or not isinstance(raw.get("class"), str):
        raise ValueError(f"GenEval clause {raw!r} names no class; it needs 'class' and 'count'")
    count, color = raw.get("count"), raw.get("color")
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"GenEval clause {raw!r} needs a 'count' of at least 1")
    if color is not None and color not in COLORS:
        raise ValueError(f"GenEval clause {raw!r}: 'color' must be one of {', '.join(COLORS)}")
    if raw.get("position") is None:
        return Clause(raw["class"], count, color)
    try:
        relation, target = raw["position"]
        known = relation in RELATIONS and target in range(place)
    except (TypeError, ValueError):
        known = False
    if not known:
        raise ValueError(
            f"GenEval clause {raw!r}: 'position' must be [relation, number of an earlier clause], "
            f"the relation one of {', '.join(RELATIONS)}"
        )
    return Clause(raw["class"], count, color, relation, target)


def confident_objects(
    objects: Sequence[DetectedObject], label: str, counting: bool = False
) -> list[DetectedObject]:
    """Objects of a class that count, the surest first.

    Args:
        objects: Everything found in a picture.
        label: The class.
        counting: Whether they need `COUNTING_CONFIDENCE`.

    Returns:
        At most `MAX_OBJECTS` objects.
    """
    threshold = COUNTING_CONFIDENCE if counting else CONFIDENCE
    sure = [found for found in objects if found.label == label and found.score > threshold]
    return sorted(sure, key=lambda found: -found.score)[:MAX_OBJECTS]


def relative_positions(box: Box, other: Box) -> set[str]:
    """How a box lies as seen from another; two relations where it lies diagonally.

    The offset of the centers is shortened in each direction by `POSITION_THRESHOLD` of both boxes'
    sides, and then counts where it is more than half of the distance of the centers.

    Args:
        box: The box.
        other: What it is seen from.

    Returns:
        Some of `RELATIONS`; none where the boxes nearly share their centers.
    """
    edges = np.array([box, other], dtype=np.float64).reshape(2, 2, 2)
    offset = edges[0].mean(axis=0) - edges[1].mean(axis=0)
    sides = np.abs(edges[:, 1] - edges[:, 0]).sum(axis=0)
    clear = np.sign(offset) * np.maximum(np.abs(offset) - POSITION_THRESHOLD * sides, 0)
    if bool((np.abs(clear) < 1e-3).all()):
        return set()
    x, y = (clear / np.linalg.norm(offset)).tolist()
    holds = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {relation for relation, true in holds.items() if true}


def judge(objects: Sequence[DetectedObject], clauses: Clauses) -> ClauseScores:
    """Compare a picture's objects with the clauses of its prompt.

    Args:
        objects: Everything found; with a color at least the surest objects of each class whose
            clause asks for one, as many as the clause counts.
        clauses: What the prompt asks for.

    Returns:
        The scores.
    """
    found = {label: confident_objects(objects, label, clauses.counting) for label in clauses.labels}
    surplus = any(len(found[clause.label]) >= clause.count for clause in clauses.exclude)
    components, strict = _judge_exactly(found, clauses.include)
    return ClauseScores(
        graded=sum(components) / len(components),
        strict=strict and not surplus,
        accurate=_judge_leniently(found, clauses.include) and not surplus,
    )


def _judge_exactly(
    found: Mapping[str, list[DetectedObject]], clauses: Sequence[Clause]
) -> tuple[list[float], bool]:
    """Graded components, and whether every clause holds with its exact number of objects."""
    components: list[float] = []
    matches: list[list[DetectedObject] | None] = []
    for clause in clauses:
        objects = found[clause.label]
        components.append(_closeness(len(objects), clause.count))
        holds = len(objects) == clause.count
        if not holds:
            if clause.color or clause.relation:
                components.append(0.0)
        else:
            if clause.color:
                colored = sum(item.color == clause.color for item in objects)
                components.append(_closeness(colored, clause.count))
                holds = colored == clause.count
            if clause.relation and holds:
                holds = _stands(objects, matches[clause.target], clause.relation)
                components.append(float(holds))
        matches.append(objects if holds else None)
    return components, all(match is not None for match in matches)


def _judge_leniently(found: Mapping[str, list[DetectedObject]], clauses: Sequence[Clause]) -> bool:
    """Whether every clause holds for its surest objects, whatever else there is."""
    matches: list[list[DetectedObject] | None] = []
    for clause in clauses:
        objects = found[clause.label][: clause.count]
        holds = len(objects) == clause.count
        if clause.color:
            holds = holds and all(item.color == clause.color for item in objects)
        if clause.relation:
            holds = holds and _stands(objects, matches[clause.target], clause.relation)
        matches.append(objects if holds else None)
    return all(match is not None for match in matches)


def _closeness(number: int, requested: int) -> float:
    return 1 - abs(requested - number) / requested


def _stands(
    objects: Sequence[DetectedObject], others: Sequence[DetectedObject] | None, relation: str
) -> bool:
    """Whether all objects stand so to all others; never where the other clause failed."""
    return others is not None and all(
        relation in relative_positions(item.box, other.box) for item in objects for other in others
    )
