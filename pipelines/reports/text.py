"""Words from anywhere, made safe for the place they go to: a file's name, a cell of a spreadsheet."""

import re


def file_name(words: str) -> str:
    """`team/own data` as `team_own_data`: a name without folders."""
    return re.sub(r"[^\w.-]+", "_", words).strip("._") or "unnamed"


def spreadsheet_cell(words: str) -> str:
    """A text that a spreadsheet would run as a formula, with an apostrophe before it."""
    return f"'{words}" if words[:1] in ("=", "+", "-", "@", "\t", "\r") else words
