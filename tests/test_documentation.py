"""What the pages show is so: their commands are read, their links lead somewhere, their Python runs."""

import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support import ROOT
from support.clip_config import write_clip_config
from support.markdown import Code, anchors, code_blocks, code_spans, links
from support.methods import FRAMES, batch, tiny_clip
from support.report import log_tuned, make_store
from support.tuned_model import make
from support.video import write_video

from vopcore import clip as clip_module
from vopcore.config import read_config, read_matrix
from vopcore.config.search import read_search_config
from vopcore.methods import METHODS, save_tuned, tune
from vopcore.retriever import Retriever

FOLDERS = (".github", "conf", "pipelines", "vopcore", "tests")
PAGES = [*ROOT.glob("*.md"), *sorted(page for name in FOLDERS for page in (ROOT / name).rglob("*.md"))]


@dataclass(frozen=True)
class Command:
    """One call of a command that a page shows: `pipelines/NAME.py` and its arguments."""

    page: Path
    line: int
    name: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line} {self.name} {shlex.join(self.arguments)}"


def commands(code: Code) -> list[Command]:
    """Every `python pipelines/NAME.py ...` of some code, also behind `ray job submit` and within quotes."""
    shown = []
    joined = code.text.replace("\\\n", " ")
    for offset, text in enumerate(joined.splitlines()):
        if "python pipelines/" in text:
            calls = calls_in(text)
            shown += [Command(code.page, code.line + offset, name, arguments) for name, arguments in calls]
    return shown


def calls_in(text: str) -> list[tuple[str, tuple[str, ...]]]:
    """The name and the arguments of each call in a line of shell."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(lexer)
    calls = []
    for position, word in enumerate(words):
        script = re.fullmatch(r"pipelines/(\w+)\.py", word)
        if script and position and words[position - 1].endswith("python"):
            calls.append((script[1], arguments_of(words[position + 1 :])))
        elif "python pipelines/" in word:  # a command in quotes, for another machine
            calls += calls_in(word)
    return calls


def arguments_of(words: list[str]) -> tuple[str, ...]:
    """The words up to the next `&&`, `|` or `>`, without the brackets and dots of a usage line."""
    arguments = []
    for word in words:
        if set(word) <= set("();<>|&"):
            break
        word = word.removeprefix("[")
        if word.count("]") > word.count("["):
            word = word.removesuffix("]")
        if word != "...":
            arguments.append(word)
    return tuple(arguments)


BLOCKS = [block for page in PAGES for block in code_blocks(page)]
SPANS = [span for page in PAGES for span in code_spans(page)]
COMMANDS = [command for code in [*BLOCKS, *SPANS] for command in commands(code)]


def parsed(command: Command) -> Namespace | None:
    """What the command's own parser makes of the arguments; None where it only prints, as for `--help`."""
    module = importlib.import_module(f"pipelines.{command.name}")
    parser = module.EXPORT if command.arguments[:1] == ("export",) else module.CLI
    is_intermixed = "parse_intermixed_args" in inspect.getsource(module)
    parse = parser.parse_intermixed_args if is_intermixed else parser.parse_args
    try:
        return parse(command.arguments)
    except SystemExit as end:
        if end.code:
            pytest.fail(f"{command} is refused")
        return None


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_line_is_one_that_its_command_takes(command, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = parsed(command)
    if arguments is None:
        return

    # argparse takes any word for an override; the settings themselves know which keys there are
    file = getattr(arguments, "config", None) or getattr(arguments, "matrix", None)
    overrides = [word for word in getattr(arguments, "overrides", []) if word != "key=value"]
    for override in overrides:
        assert "=" in override, f"{override} is no setting"
    if command.name == "index" and command.arguments[0] != "export":
        assert read_search_config(arguments.config, overrides)
    elif file and Path(file).is_file():
        if command.name == "benchmark":
            assert read_matrix(file, overrides).tables
        else:
            # folders of the reader's own machine: any that exists will do
            here = [re.sub(r"(data\.\w+)=/.*", rf"\1={tmp_path}", override) for override in overrides]
            assert read_config(file, [f"data.root={tmp_path}", *here])
    elif file:
        assert re.search("[A-Z]{4}", str(file)), f"{file} is neither a file nor a placeholder"


def test_the_pages_name_every_command():
    names = {file.stem for file in (ROOT / "pipelines").glob("*.py")} - {"__init__"}
    assert {command.name for command in COMMANDS} == names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_leads_to_a_file_and_an_anchor_that_exist(page):
    for line, address in links(page):
        if re.match(r"[a-z]+:", address):
            continue
        name, _, anchor = address.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page}:{line}: {address}"
        if anchor:
            assert anchor in anchors(target), f"{page}:{line}: {address}"


def python_blocks(page: Path) -> list[Code]:
    return [block for block in code_blocks(page) if block.is_python]


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> Path:
    """The folder of somebody who follows vopcore/README.md: a small CLIP in the place of ViT-B/32, with its
    size of pictures and texts, weights that were tuned on it, and a video.
    """
    folder = tmp_path_factory.mktemp("reader")
    config = write_clip_config(
        folder / "small.json",
        vision={"image_size": 224, "patch_size": 32},
        text={"context_length": 77},
        quick_gelu=True,
    )
    clip = clip_module.load(str(config))
    save_file(clip.state_dict(), folder / "small.safetensors")
    save_tuned(folder / "tuned.safetensors", tune(clip, METHODS["vop_p"](), 12), "mean")
    write_video(folder / "a.mp4")
    return folder


def test_the_python_of_the_librarys_page_runs_as_printed(reader, monkeypatch):
    monkeypatch.chdir(reader)
    blocks = python_blocks(ROOT / "vopcore/README.md")
    assert blocks
    weights = ('"ViT-B-32-quickgelu", "openai"', '"small.json", "small.safetensors"')
    names = {}
    for block in blocks:
        # a block stands on its own: what it needs it imports
        names = {"__name__": "page"}
        exec(compile("\n" * block.line + block.text.replace(*weights), block.page, "exec"), names)
        if "similarity" in names:
            assert names["similarity"].shape == (2, 1)
            assert names["similarity"].isfinite().all()


@torch.no_grad()
def test_the_method_that_the_page_adds_is_one_that_tunes_and_begins_at_the_frozen_clip():
    (block,) = [block for block in python_blocks(ROOT / "vopcore/README.md") if "def attach" in block.text]
    names = {"__name__": "page"}
    exec(block.text, names)
    (method,) = [kind for kind in names.values() if hasattr(kind, "attach")]
    clip = tune(tiny_clip(), method(), FRAMES)
    trained = [parameter for parameter in clip.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in trained) == 3 * 48 + 2 * 32

    pixels, tokens = batch()
    frozen = Retriever(tiny_clip())
    wanted = frozen.similarity(frozen.text(tokens), frozen.video(pixels))
    tuned = Retriever(clip)
    torch.testing.assert_close(tuned.similarity(tuned.text(tokens), tuned.video(pixels)), wanted)
    for parameter in trained:
        parameter.mul_(2)
    changed = tuned.similarity(tuned.text(tokens), tuned.video(pixels))
    assert not torch.allclose(changed, wanted)


def test_the_python_of_the_commands_page_runs_as_printed(tmp_path):
    blocks = python_blocks(ROOT / "pipelines/README.md")
    assert blocks
    output = tmp_path / "outputs/quickstart"
    output.mkdir(parents=True)
    run_id = log_tuned(make_store(output, "quickstart"), make(tmp_path / "made").folder)
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for number, block in enumerate(blocks):
        script = tmp_path / f"{number}.py"
        script.write_text(block.text.replace("RUN_ID", run_id))
        ended = subprocess.run(
            [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert ended.returncode == 0, f"{block.page}:{block.line}\n{ended.stderr[-3000:]}"
