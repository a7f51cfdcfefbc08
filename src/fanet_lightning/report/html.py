"""HTML of every report: one jinja environment, numbers as text, figures inside a page."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from fanet_lightning.cli.errors import as_given
from fanet_lightning.report.figures import STYLE


def render(template: Path, **content: Any) -> str:
    """The template with its content; ``{{ inline("base.css") }}`` is a file next to it, or next to ours."""
    environment = jinja2.Environment(
        loader=(loader := jinja2.FileSystemLoader([template.parent, Path(__file__).parent / "templates"])),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["inline"] = lambda name: Markup(loader.get_source(environment, name)[0])
    filters: dict[str, Callable[[Any], str]] = {
        "thousands": "{:,}".format,
        # Names of files may hold bytes that are no text; a page is text.
        "text": lambda value: str(value).encode("utf-8", "replace").decode("utf-8"),
        "percent": percent, "value": value_text,
    }  # fmt: skip
    environment.filters |= filters
    return environment.get_template(template.name).render(**content)


def data_uri(figure: Figure) -> str:
    """The figure as SVG inside a URI: an image of its own, so that names inside it clash with nothing on the page."""
    text = io.StringIO()
    # Outlines of letters rather than text: the reader's machine may lack the font, and then labels would run over.
    with mpl.rc_context({**STYLE, "svg.fonttype": "path", "svg.hashsalt": "report"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(text.getvalue().encode()).decode()


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def points(value: float) -> str:
    """Signed, with one decimal; a minus sign rather than a hyphen, and no sign on zero."""
    text = f"{abs(value):.1f}"
    return text if text == "0.0" else f"{'−' if value < 0 else '+'}{text}"


def duration(seconds: float) -> str:
    """Hours and minutes, below an hour minutes and seconds."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def value_text(value: Any) -> str:
    """A setting as it is typed: ``true``, ``null``, ``1, 2``."""
    return ", ".join(map(value_text, value)) or "none" if isinstance(value, list) else str(as_given(value))
