"""The last line of a command: its exit code and why, as `ray job submit` itself knows only 0 and 1."""

import argparse
import sys
from typing import NoReturn

from vopcore.config import ConfigError


class Arguments(argparse.ArgumentParser):
    """A command line whose mistakes end like those in the config."""

    def error(self, message: str) -> NoReturn:
        """argparse calls this with what is wrong. Raises ConfigError."""
        raise ConfigError(f"{message}; {' '.join(self.format_usage().split())}")


def ended(code: int, reason: object, what: str = "error") -> int:
    """Print why, the first line of `reason` as the very last one; returns `code`."""
    first, *details = str(reason).strip().splitlines() or [""]
    sys.stdout.flush()
    for line in [*details, f"{what} (exit code {code}): {first}"]:
        print(line, file=sys.stderr, flush=True)
    return code
