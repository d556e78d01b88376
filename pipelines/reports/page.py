"""Static pages from templates: one file each, nothing fetched from anywhere."""

import base64
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).parent / "templates"
DARK = {  # colours that `plots` draws with, and what they are on a dark screen
    "#2b2f36": "#e4e8ee",
    "#7a828e": "#9aa4b2",
    "#e7eaef": "#333b47",
}


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
    # Names come from anywhere: all is escaped, and a value that is missing is an error, not a gap.
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
    if isinstance(content, str):
        content = content.encode()
    encoded = base64.b64encode(content).decode()
    return f"data:image/{kind};base64,{encoded}"


def in_the_dark(svg: str) -> str:
    """The same plot with light lines and words where the reader's screen is dark; paper stays as it is."""
    light_values = ""
    dark_values = ""
    for colour, dark_colour in DARK.items():
        variable = _variable(colour)
        light_values += f"{variable}:{colour};"
        dark_values += f"{variable}:{dark_colour};"
        svg = svg.replace(colour, f"var({variable})")

    light = f"svg{{{light_values}}}"
    dark = f"@media screen and (prefers-color-scheme:dark){{svg{{{dark_values}}}}}"
    style = f"<style>{light}{dark}</style>"

    # The style is the first child of the svg element; an XML declaration may stand before that.
    tag = svg.index("<svg")
    start = svg.index(">", tag) + 1
    return svg[:start] + style + svg[start:]


def _variable(colour: str) -> str:
    """`--c2b2f36` of `#2b2f36`."""
    return f"--c{colour[1:]}"
