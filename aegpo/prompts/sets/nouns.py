"""English nouns with their article and in the plural, as far as the prompt sets need them."""

from __future__ import annotations

_IRREGULAR = {
    "computer mouse": "computer mice",
    "knife": "knives",
    "person": "people",
    "sheep": "sheep",
}


def with_article(noun: str) -> str:
    """The noun, perhaps with an adjective before it, with "a" or "an" by its first letter."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(noun: str) -> str:
    """The plural of a noun."""
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    return f"{noun}es" if noun.endswith(("s", "ch", "sh", "x")) else f"{noun}s"
