"""Search an index of videos by text, to the second.

    python pipelines/search.py INDEX "a dog runs into the sea"
    python pipelines/search.py INDEX "a dog" --where "folder = 'holidays/2026' AND date >= '2026-07-01'"
    python pipelines/search.py INDEX --like clip.mp4        # or a photo
    python pipelines/search.py INDEX "a dog" --top 3 --json

Each line is a video, from, to, and how well it matches. Exit codes: 0 done, 2 something to put right.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent.parent))  # this checkout, also where another one is installed

from pipelines.command.arguments import CommandLine, UsageError
from pipelines.command.exit_codes import DONE, exit_code_of
from pipelines.command.names import printable

if TYPE_CHECKING:
    from torch import Tensor

    from vopcore.index import Answer, Index

MAX_TOP = 1000
MAX_NAME = 60  # characters of a name that lines are aligned behind

CLI = CommandLine("search", __doc__)
CLI.add_argument("index", help="a folder or bucket that pipelines/index.py has made")
CLI.add_argument("text", nargs="?", help="what to look for")
CLI.add_argument("--like", help="a video or a photo in the place of a text")
CLI.add_argument("--top", type=int, default=10, help=f"answers at most, up to {MAX_TOP} (10)")
CLI.add_argument("--where", help="a condition over video, folder, name, date, size, duration, in SQL")
CLI.add_argument("--by-video", action="store_true", help="only the best answer of each video")
CLI.add_argument("--json", action="store_true", help="print JSON")


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    return exit_code_of(lambda: _main(argv))


def _main(argv: Sequence[str]) -> int:
    args = CLI.parse_args(argv)
    check(args)
    print(search(args))
    return DONE


def check(args: argparse.Namespace) -> None:
    """Refuse what has no answer, before torch is loaded. Raises UsageError."""
    if (args.text is None) == (args.like is None):
        raise UsageError('say what to look for: a text, such as "a dog runs into the sea", or --like FILE')
    if args.text is not None and not args.text.strip():
        raise UsageError("the text is empty; say what to look for")
    if not 1 <= args.top <= MAX_TOP:
        raise UsageError(f"--top: {args.top} is not between 1 and {MAX_TOP}")


def search(args: argparse.Namespace) -> str:
    """What to print. Raises ValueError, one line."""
    from vopcore.index import Question, open_index

    index = open_index(args.index)
    is_picked = index.filter.pick(args.where) if args.where is not None else None
    question = Question(
        features=features(index, args),
        is_example=args.like is not None,
        top=args.top,
        is_picked=is_picked,
        by_video=args.by_video,
    )
    answers = index.search(question)
    if args.json:
        rows = [asdict(answer) for answer in answers]
        for row in rows:
            del row["row"]
        return json.dumps(rows, indent=1)
    return table(answers) if answers else f"nothing: {args.index} holds no moment that was asked for"


def features(index: "Index", args: argparse.Namespace) -> "Tensor":
    """float32 [D]: the vector of what is looked for."""
    from vopcore.index.encode import TextEncoder
    from vopcore.index.example import encode_example
    from vopcore.index.model import local_model

    folder = local_model(args.index, index.header.tuned)
    if args.like is not None:
        return encode_example(folder, Path(args.like))
    return TextEncoder(folder).encode([args.text])[0]


def table(answers: Sequence["Answer"]) -> str:
    """A line for each answer. The longest name decides the width, unless it would push all others aside."""
    names = [printable(answer.video) for answer in answers]
    width = min(max(len(name) for name in names), MAX_NAME)
    lines = []
    for name, answer in zip(names, answers, strict=True):
        span = f"{clock(answer.start):>10} - {clock(answer.end):>10}"
        lines.append(f"{name:{width}}  {span}  {answer.score:6.3f}")
    return "\n".join(lines)


def clock(seconds: float) -> str:
    """`1:02:03.4`, as players show it."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest // 10:02}.{rest % 10}"
    return f"{minutes}:{rest // 10:02}.{rest % 10}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
