"""Static pages from templates: one file each, nothing fetched from anywhere."""

import base64
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).parent / "templates"
DARK = {"#2b2f36": "#e4e8ee", "#7a828e": "#9aa4b2", "#e7eaef": "#333b47"}  # of what `plots` draws


@dataclass(frozen=True)
class ReportPlot:
    """A figure on the page, the name of its file, and what one sees on it in words."""

    name: str
    caption: str
    svg: str
    seen: str = ""

    @property
    def image(self) -> str:
        return data_uri(in_the_dark(self.svg), "svg+xml")

    @property
    def alt(self) -> str:
        return f"{self.caption} {self.seen}".strip()


def render(template: str, **values: object) -> str:
    """The page; all values are escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def data_uri(content: str | bytes, kind: str) -> str:
    """An image inside the page; kind: `svg+xml`, `jpeg`."""
    raw = content.encode() if isinstance(content, str) else content
    return f"data:image/{kind};base64,{base64.b64encode(raw).decode()}"


def in_the_dark(svg: str) -> str:
    """The same plot with light lines and words where the reader's screen is dark; paper stays as it is."""
    light = "".join(f"--c{colour[1:]}:{colour};" for colour in DARK)
    dark = "".join(f"--c{colour[1:]}:{other};" for colour, other in DARK.items())
    style = f"<style>svg{{{light}}}@media screen and (prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"

    for colour in DARK:
        svg = svg.replace(colour, f"var(--c{colour[1:]})")
    start = svg.index(">", svg.index("<svg")) + 1
    return svg[:start] + style + svg[start:]
