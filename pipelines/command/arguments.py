"""The one way to build a command line. Imports nothing but argparse, so that `--help` answers at once."""

import argparse
from typing import NoReturn


class UsageError(ValueError):
    """A mistake in the command line, told in one line with the usage."""


class CommandLine(argparse.ArgumentParser):
    """The options of `pipelines/NAME.py`, whose `--help` is the module's docstring.

    A mistake is a UsageError: it ends like one in the config, with exit code 2 and one line.
    """

    def __init__(
        self,
        name: str,
        description: str | None,
        epilog: str | None = None,
    ) -> None:
        super().__init__(
            prog=f"pipelines/{name}.py",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def add_overrides(self) -> None:
        """Take `key=value` settings after the file."""
        self.add_argument(
            "overrides",
            nargs="*",
            metavar="key=value",
            help="settings that replace the file's",
        )

    def error(self, message: str) -> NoReturn:
        """argparse calls this with what is wrong. Raises UsageError."""
        usage = " ".join(self.format_usage().split())
        raise UsageError(f"{message}; {usage}")
