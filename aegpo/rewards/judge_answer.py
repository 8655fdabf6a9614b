"""The score that a judge means, found in what a language model writes around it."""

from __future__ import annotations

import re
from typing import NamedTuple

_NUMBER = r"[+-]?\d{1,9}(?:[.,]\d{1,9})?"
_DASH = r"[-–—]"
_RANGE = rf"\d+(?:\.\d+)?\s*(?:{_DASH}|to)\s*\d+(?:\.\d+)?"

_LABELED = re.compile(
    rf"""
    (?:(?<![a-z])(?P<label>[a-z]{{1,20}})[\s_*-]{{1,3}})?
    (?<![a-z]) (?:score|rating|grade) (?![a-z])
    (?:                                      # a remark on the scale: (1-5), on a scale from 1 to 5
        [\W_]{{0,4}} (?:
            [(\[{{] [^()\[\]{{}}\n]{{0,80}} [)\]}}] (?= [\s*_"]*[:=] )
          | [(\[{{] [^()\[\]{{}}\n]{{0,40}}? (?:{_RANGE}|out\ of) [^()\[\]{{}}\n]{{0,40}} [)\]}}]
          | (?:on|from|out|between) \b [^:=\n.!?]{{0,50}} (?= [:=] )
          | {_RANGE} (?= [\s*_"]*[:=] )
        )
    )?
    (?: (?! [+-]\d ) [^\w.,!?;%] | _ ){{0,20}}  # colons, stars, quotes, brackets, dashes, line ends
    (?: (?:is|of|was|would\ be|\\?boxed) (?: (?! [+-]\d ) [^\w.,!?;%] | _ ){{1,9}} ){{0,2}}
    (?P<number>{_NUMBER}) (?! \w | [.,]\d )
    (?P<percent> \s*% )?
    (?: [\s*_"]* (?: / | out\ of | of ) \s* (?P<most>\d+(?:\.\d+)?) \b )?
    (?P<open> \s* (?:{_DASH}|to) \s* \d )?
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""A word for the score, a remark on the scale, and the number, with what belongs to it.

Every part has a longest length, so that no answer takes long to search."""

_BARE = re.compile(
    rf"""
    (?: \\boxed | (?! [+-]\d ) [^\w.,] )* (?P<number>{_NUMBER})
    (?P<percent> \s*% )?
    (?: \s* (?: / | out\ of ) \s* (?P<most>\d+(?:\.\d+)?) )?
    [^\w%]*
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""A line that is a number and nothing else."""

_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)

_FINAL = ("final", "overall", "total")
_NO_LABEL = ("", "a", "an", "the", "this", "my", "its", "your", "as", "and", "so", "with", "image")
"""Words before "score" that do not make it the score of something else."""


class Read(NamedTuple):
    """A number that an answer gives, and why it cannot be the score.

    Attributes:
        number: The number.
        problem: What is wrong with it; empty where nothing is.
    """

    number: float
    problem: str = ""


def read_score(text: str, scale: tuple[float, float]) -> Read | None:
    """Find the number that an answer gives as its score.

    A final, overall or total score goes before a plain one, and that before the score of something
    (an alignment score), or else a line with nothing but a number; among equals the last counts. A
    scale that is named beside the word (``Final Score (1-5): 4``, ``4/5``) is not the score, and
    what was thought before the answer (``<think>``) is not read. Shares (80 %) are left out unless
    the scale ends at 100.

    Args:
        text: What the judge wrote.
        scale: Lowest and highest number that it was asked for.

    Returns:
        The number, which is problematic if it is off the scale, out of another maximum, or one end
        of a range; None where there is none.

    Examples:
        >>> read_score("**Final Score (1-5):** 4. Alignment score 80%", (1, 5))
        Read(number=4.0, problem='')
        >>> read_score("Final Score: 8/10", (1, 5))
        Read(number=8.0, problem='out of 10 instead of 5')
    """
    text = _THOUGHT.sub("", text)
    ranked: list[tuple[int, re.Match[str]]] = [
        (_rank(found["label"]), found) for found in _LABELED.finditer(text)
    ]
    lines = [_BARE.fullmatch(line.strip()) for line in text.splitlines() if len(line) < 80]
    ranked += [(0, found) for found in lines if found is not None]
    if scale[1] != 100:
        ranked = [(rank, found) for rank, found in ranked if not found["percent"]]
    if not ranked:
        return None
    best = max(rank for rank, _ in ranked)
    found = [match for rank, match in ranked if rank == best][-1]
    number = float(found["number"].replace(",", "."))
    return Read(number, _problem(number, found.groupdict(), scale))


def match_score(pattern: re.Pattern[str], text: str, scale: tuple[float, float]) -> Read | None:
    """Take the number that a pattern of one group finds last; see `read_score`.

    Args:
        pattern: With one group.
        text: What the judge wrote.
        scale: Lowest and highest number that it was asked for.

    Returns:
        The number, which is problematic if it is off the scale; None where there is none.
    """
    found = pattern.findall(text)
    try:
        number = float(found[-1])
    except (IndexError, ValueError):
        return None
    return Read(number, _problem(number, {}, scale))


def _rank(label: str | None) -> int:
    """How surely a score under this label is the one that was asked for, 1 to 3."""
    word = (label or "").lower()
    return 3 if word in _FINAL else 2 if word in _NO_LABEL else 1


def _problem(number: float, about: dict[str, str | None], scale: tuple[float, float]) -> str:
    low, high = scale
    most = about.get("most")
    if most is not None and float(most) != high:
        return f"out of {most} instead of {high:g}"
    if about.get("open"):
        return "with a range instead of a number"
    if not low <= number <= high:
        return f"outside the scale of {low:g} to {high:g}"
    return ""
