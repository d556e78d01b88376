"""Names of files as a terminal shows them."""


def printable(name: str) -> str:
    """A file's name without what would move the cursor of a terminal, or begin a line."""
    letters = []
    for letter in name:
        shown = letter if letter.isprintable() else repr(letter)[1:-1]
        letters.append(shown)
    return "".join(letters)
