"""Names and texts of a user's, put where some characters mean something."""

from __future__ import annotations

import re

_IN_TAGS = re.compile(r"[/\\\x00-\x1f\x7f\ud800-\udfff]|%(?=[0-9A-Fa-f]{2})|^%$")
_ENTITIES_IN_MARKDOWN = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "~": "&#126;", "$": "&#36;"}
)


def tag_part(name: str) -> str:
    """Write a name as one part of a tag, so that a tag splits at its slashes alone.

    Args:
        name: Any text, such as a category or the name of a reward.

    Returns:
        The name with slashes, backslashes and control characters as ``%`` and their number; another
        for each name, and most names as they are. "%" for an empty one.

    Examples:
        >>> tag_part("two objects"), tag_part("16/9"), tag_part("80% red")
        ('two objects', '16%2F9', '80% red')
    """
    return _IN_TAGS.sub(lambda found: f"%{ord(found[0]):02X}", name) or "%"


def tag_name(part: str) -> str:
    """Read the name that `tag_part` wrote.

    Args:
        part: What stands between the slashes of a tag.

    Returns:
        The name; "" for "%".
    """
    if part == "%":
        return ""
    return re.sub("%([0-9A-Fa-f]{2})", lambda found: chr(int(found[1], 16)), part)


def markdown_text(text: str) -> str:
    r"""Write a text so that Markdown shows it as it is, on one line.

    Not all dialects take a backslash before all characters; what some do not is an entity.

    Args:
        text: Any text, such as a prompt.

    Returns:
        Markdown in which no character of the text is markup or ends a table's cell.

    Examples:
        >>> print(markdown_text("a *red* <lora:x|1> hat"))
        a \*red\* &lt;lora:x&#124;1&gt; hat
    """
    escaped = re.sub(r"([\\`*_\[\]])", r"\\\1", " ".join(text.split()))
    return escaped.translate(_ENTITIES_IN_MARKDOWN)


def markdown_code(text: str) -> str:
    """Write a text as Markdown's code, on one line.

    Args:
        text: Any text, such as a part of a config; it may hold backticks.

    Returns:
        A code span that shows the text and ends where it ends; "" for an empty text.

    Examples:
        >>> print(markdown_code("top_k=4"), markdown_code("Rate `{prompt}`"))
        `top_k=4` `` Rate `{prompt}` ``
    """
    line = " ".join(text.split())
    if not line:
        return ""
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence, space = "`" * (longest + 1), " " if "`" in (line[0], line[-1]) else ""
    return f"{fence}{space}{line}{space}{fence}"


def figure_text(text: str) -> str:
    """Write a text so that a figure shows it as it is.

    Args:
        text: Any text, such as the name of a reward.

    Returns:
        The text without mathematics, and with a space before an underscore at its start, for which
        a legend would leave it out.
    """
    return re.sub("^_", " _", text.replace("$", r"\$"))
