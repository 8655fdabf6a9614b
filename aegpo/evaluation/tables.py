"""Tables of one evaluation or of several: no column holds numbers of different settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A score under one set of conditions.

    Args:
        title: Heading, numbered where a score was measured under several.
        score: Name of the score.
        conditions: All that has to be the same in a column, by name.
        cells: By row: the entry of the score.
    """

    title: str
    score: str
    conditions: Mapping[str, Any]
    cells: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Table:
    """Models against scores.

    Args:
        rows: Names of the models, those of other evaluations with the evaluation's name.
        columns: The scores.
        notes: What the columns of one score differ in, and what else must be said.
    """

    rows: Sequence[str]
    columns: Sequence[Column]
    notes: Sequence[str]


def table_of(results: Mapping[str, Result]) -> Table:
    """Lay evaluations out in one table.

    Args:
        results: By the name of the evaluation; the first one's models have no name beside theirs.

    Returns:
        The table. Numbers share a column only if suite, prompts, generation settings and the
        reward's own settings are the same.
    """
    rows: list[str] = []
    found: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for place, (name, result) in enumerate(results.items()):
        for model in result["models"]:
            row = model["name"] if place == 0 else f"{model['name']} ({name})"
            rows.append(row)
            for score, entry in scores_of(model):
                conditions = _conditions(result, model, score)
                columns = found.setdefault(score, [])
                cells = next((cells for known, cells in columns if known == conditions), None)
                if cells is None:
                    columns.append((conditions, cells := {}))
                cells[row] = entry
    table: list[Column] = []
    apart: dict[str, list[str]] = {}
    for score, columns in found.items():
        for number, (conditions, cells) in enumerate(columns, start=1):
            title = score if len(columns) == 1 else f"{score} [{number}]"
            table.append(Column(title, score, conditions, cells))
            if number > 1:
                reason = "; ".join(_apart(columns[0][0], conditions))
                apart.setdefault(reason, []).append(title)
    notes = [f"[1] against {', '.join(titles)}: {reason}" for reason, titles in apart.items()]
    return Table(rows, table, [*notes, *_versions_apart(results)])


def scores_of(model: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A model's scores, and its distances as if they were some.

    Args:
        model: One of a result's models.

    Yields:
        Name and entry.
    """
    yield from model["scores"].items()
    distances = model.get("distances") or {}
    for name in ("fid", "kid"):
        if name in distances:
            yield name, {"mean": distances[name], "conditions": distances}


def _conditions(result: Result, model: Mapping[str, Any], score: str) -> dict[str, Any]:
    suite = result["suite"]
    conditions = {
        "suite": suite["source"] if suite["protocol"] == "plain" else suite["title"],
        "prompts": f"{suite['prompts']} ({suite['fingerprint']})",
        "averaging": suite["averaging"],
        **{str(key): value for key, value in model["settings"].items()},
        "reward": result["rewards"].get(score, result["rewards"].get(score.partition(".")[0])),
    }
    # The same prompts under another name are the same prompts.
    del conditions["suite"]
    distances = model.get("distances") or {}
    if score in distances:
        conditions |= {key: distances[key] for key in ("reference", "features", "images")}
    return conditions


def _apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    for key in [*one, *(key for key in other if key not in one)]:
        follows = key == "noise_levels" and one.get("steps") != other.get("steps")
        if one.get(key) != other.get(key) and not follows:
            yield f"{key} {shown(one.get(key))} against {shown(other.get(key))}"


def _versions_apart(results: Mapping[str, Result]) -> Iterator[str]:
    (first, own), *others = results.items()
    for name, result in others:
        apart = list(_apart(own["versions"], result["versions"]))
        if apart:
            yield f"{name} was made with other versions than {first}: {'; '.join(apart)}"


def shown(value: Any) -> str:
    """A setting's value in words."""
    if isinstance(value, list):
        return "[" + ", ".join(shown(one) for one in value) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def number(entry: Mapping[str, Any] | None, signed: bool = False) -> str:
    """Write a score with its interval.

    Args:
        entry: `mean`, and `low` and `high` where there is an interval; None for no entry.
        signed: Whether a plus stands before what is above 0.

    Returns:
        Such as "0.604 [0.571, 0.636]"; a dash for no number.
    """
    if entry is None or entry.get("mean") is None:
        return "–"
    sign = "+" if signed else ""
    text = f"{entry['mean']:{sign}.3f}"
    if entry.get("low") is None:
        return text
    return f"{text} [{entry['low']:{sign}.3f}, {entry['high']:{sign}.3f}]"


def settings_line(result: Result, model: Mapping[str, Any]) -> str:
    """Say in one line what a model's numbers were made with.

    Args:
        result: The evaluation.
        model: One of its models.

    Returns:
        The line.
    """
    settings = model["settings"]
    told = [f"{key} {shown(value)}" for key, value in settings.items() if key != "noise_levels"]
    return (
        f"{', '.join(told)}; weights {model['weights']}; prompts "
        f"{result['suite']['fingerprint']}; settings {model['settings_id']}"
    )


def blocks(results: Mapping[str, Result]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """The tables that a page shows, one after another.

    Args:
        results: By the name of the evaluation, this one first.

    Yields:
        A title, a header, and rows of cells; plain text.
    """
    table = table_of(results)
    header = ["model", *(column.title for column in table.columns)]
    yield (
        "Scores, with 95 % intervals over prompts",
        header,
        [[row, *(number(c.cells.get(row)) for c in table.columns)] for row in table.rows],
    )
    rows = [
        [row, *(number((c.cells.get(row) or {}).get("difference"), True) for c in table.columns)]
        for row in table.rows
    ]
    rows = [row for row in rows if set(row[1:]) != {"–"}]
    if rows:
        yield "Difference to the base, paired prompt by prompt", header, rows
    for column in table.columns:
        names = sorted({name for e in column.cells.values() for name in e.get("categories") or {}})
        if names:
            yield (
                f"{column.title} by category",
                ["model", *names],
                [
                    [row, *(number(entry["categories"].get(name)) for name in names)]
                    for row, entry in column.cells.items()
                ],
            )


def about_suite(result: Result) -> list[str]:
    """Say what a suite is, how its scores are averaged and who judges in its publication.

    Args:
        result: The evaluation.

    Returns:
        Lines of plain text.
    """
    suite = result["suite"]
    images = result["models"][0]["settings"]["images_per_prompt"]
    averaged = {
        "prompts": "scores are means over images, then over prompts",
        "categories": "scores are means over images, then prompts, then categories",
        "separate": "each category has its score, and there is none over all",
    }[suite["averaging"]]
    lines = [f"{suite['prompts']} prompts, {images} images each; {averaged}."]
    if suite["protocol"] != "plain":
        official = suite["official_images_per_prompt"]
        lines.append(f"{suite['title']}: judged by {suite['official_judge']}.")
        if images != official:
            lines.append(f"Its protocol has {official} images a prompt, not {images}.")
    return lines
