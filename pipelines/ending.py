"""The last line of a command: its exit code and why, as `ray job submit` itself knows only 0 and 1."""

import sys


def ended(code: int, reason: object, what: str = "error") -> int:
    """Print why, the first line of `reason` as the very last one; returns `code`."""
    first, *details = str(reason).strip().splitlines() or [""]
    sys.stdout.flush()
    for line in [*details, f"{what} (exit code {code}): {first}"]:
        print(line, file=sys.stderr, flush=True)
    return code
