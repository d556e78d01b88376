"""Words from anywhere, made safe for the place they go to: a file's name, a cell of a spreadsheet."""

import re

NOT_IN_FILE_NAMES = re.compile(r"[^\w.-]+")
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def file_name(words: str) -> str:
    """`team/own data` as `team_own_data`: a name without folders."""
    joined = NOT_IN_FILE_NAMES.sub("_", words)

    # A dot in front would hide the file, and `..` would leave the folder.
    name = joined.strip("._")
    return name or "unnamed"


def spreadsheet_cell(words: str) -> str:
    """Put an apostrophe before a text that a spreadsheet would run as a formula."""
    if words.startswith(FORMULA_STARTS):
        return f"'{words}"
    return words
