"""HTML of every report: one jinja environment, numbers as text, figures inside a page."""

import base64
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jinja2
import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from fanet_lightning.report.figures import STYLE


def render(template: Path, **content: Any) -> str:
    """The template with its content; ``{{ source("page.css") }}`` in it is a file next to it, as it stands."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["source"] = lambda name: Markup((template.parent / name).read_text(encoding="utf-8"))
    filters: dict[str, Callable[[Any], str]] = {
        "thousands": "{:,}".format,
        # Names of files may hold bytes that are no text; a page is text.
        "text": lambda value: str(value).encode("utf-8", "replace").decode("utf-8"),
        "percent": percent, "points": points, "interval": interval_text, "seeds": seeds_text,
        "spread": spread_text, "duration": duration, "value": value_text,
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


class Estimated(Protocol):
    """What is known of an AP or a difference: :class:`fanet_lightning.report.ablation.Estimate` is one."""

    @property
    def over_images(self) -> tuple[float, float] | None: ...
    @property
    def seed_sd(self) -> float | None: ...
    @property
    def seeds(self) -> int: ...


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def points(value: float) -> str:
    """Signed, with one decimal; a minus sign rather than a hyphen, and no sign on zero."""
    text = f"{abs(value):.1f}"
    return text if text == "0.0" else f"{'−' if value < 0 else '+'}{text}"


def spread_text(estimate: Estimated) -> str:
    """With several seeds their standard deviation, with one the interval over images; in per cent."""
    if estimate.seed_sd is not None:
        return f"± {100 * estimate.seed_sd:.1f}"
    return "" if estimate.over_images is None else "[{}, {}]".format(*map(percent, estimate.over_images))


def interval_text(estimate: Estimated) -> str:
    """Interval over images of a difference, in points."""
    bounds = estimate.over_images
    return "–" if bounds is None else " … ".join(points(100 * bound) for bound in bounds)


def seeds_text(estimate: Estimated) -> str:
    """Spread over seeds of a difference, in points."""
    return "one seed" if estimate.seed_sd is None else f"± {100 * estimate.seed_sd:.1f} ({estimate.seeds} seeds)"


def duration(seconds: Any) -> str:
    """Hours and minutes, below an hour minutes and seconds; a dash for what is no number."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return "–"
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def value_text(value: Any) -> str:
    """A setting as it is typed: ``true``, ``1, 2``."""
    if isinstance(value, list):
        return ", ".join(map(value_text, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
