"""What a Markdown page shows: code, links, and the anchors that links lead to."""

import ast
import itertools
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

PARSER = MarkdownIt("commonmark").enable("table")


@dataclass(frozen=True)
class Code:
    """A block or a span of code on a page; `line` counts from 1."""

    page: Path
    line: int
    text: str

    @property
    def is_python(self) -> bool:
        """Whether it is a Python program, and not JSON, YAML or a command line."""
        try:
            statements = ast.parse(self.text).body
        except SyntaxError:
            return False
        definitions = ast.ClassDef | ast.Import | ast.ImportFrom | ast.Assign
        return any(isinstance(statement, definitions) for statement in statements)


def code_blocks(page: Path) -> list[Code]:
    """The blocks of code, indented or fenced."""
    tokens = PARSER.parse(page.read_text())
    blocks = [token for token in tokens if token.type in ("code_block", "fence")]
    return [Code(page, block.map[0] + 1, block.content) for block in blocks]


def code_spans(page: Path) -> list[Code]:
    """The `spans` of code within sentences and tables."""
    return [Code(page, line, token.content) for line, token in _inline(page) if token.type == "code_inline"]


def links(page: Path) -> list[tuple[int, str]]:
    """The line and the address of each link."""
    return [(line, str(token.attrGet("href"))) for line, token in _inline(page) if token.type == "link_open"]


def anchors(page: Path) -> set[str]:
    """The anchors of the page's headings, as GitHub names them."""
    tokens = PARSER.parse(page.read_text())
    uses: Counter[str] = Counter()
    names = set()
    for opening, content in itertools.pairwise(tokens):
        if opening.type != "heading_open":
            continue
        words = "".join(child.content for child in content.children or [])
        slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        names.add(f"{slug}-{uses[slug]}" if uses[slug] else slug)
        uses[slug] += 1
    return names


def _inline(page: Path) -> list[tuple[int, Token]]:
    """Every piece of text with the line at which its paragraph, heading or row of a table begins."""
    pieces = []
    line = 1
    for token in PARSER.parse(page.read_text()):
        if token.map:
            line = token.map[0] + 1
        pieces += [(line, child) for child in token.children or []]
    return pieces
