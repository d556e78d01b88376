"""`--settings`: every key of a config, its type, default and what it is for."""

import argparse
from typing import Any


class PrintSettings(argparse.Action):
    """Print the settings, then exit as `--help` does."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - argparse's own
        super().__init__(nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        # here, as --help should not wait for it
        from vopcore.config import settings_text

        print(settings_text())
        parser.exit()
