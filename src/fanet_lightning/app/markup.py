"""The pieces of HTML that the page is made of."""

from html import escape

from fanet_lightning.cli.errors import InputError


def heading(model: str, device: str) -> str:
    """The page's title and which model answers."""
    return (
        f"<h1>Face detection</h1><p>Model <strong>{escape(model)}</strong> on {escape(device)}. Images and videos are "
        "looked at on the computer that runs this page and sent nowhere else.</p>"
    )


def footing(keep_minutes: float) -> str:
    """What happens to the uploads, and what the numbers mean."""
    return (
        f"<p>Nothing is stored: uploads, the camera's images and results are deleted after {keep_minutes:g} minutes, "
        "and when the program ends. Boxes are x1, y1, x2, y2 in pixels of the upright image, from its upper left "
        "corner; width = x2 − x1. A score is the detector's confidence from 0 to 1. Redaction hides the faces that are "
        "found: look for those that were missed, and lower the threshold.</p>"
    )


def hint(text: str) -> str:
    """What to do next, or what is to be known of a result."""
    return f'<p class="note" role="status">{escape(text)}</p>'


def problem(error: InputError | str) -> str:
    """What went wrong, read out at once by screen readers."""
    return f'<p class="problem" role="alert">{escape(" ".join(str(error).split()))}</p>'


def working(done: int, total: int | None, what: str) -> str:
    """A progress bar, without a value where the total is not known."""
    value = "" if total is None else f' value="{done}" max="{max(total, 1)}"'
    text = f"{done:,} {what}" if total is None else f"{done:,} of {total:,} {what}"
    return f'<div class="working"><progress aria-label="Progress"{value}></progress><p class="note">{text}</p></div>'


def facts(items: dict[str, str]) -> str:
    """Names and values side by side, the first one large."""
    cells = "".join(
        f"<div{' class=main' if number == 0 else ''}><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for number, (name, value) in enumerate(items.items())
    )
    return f'<dl class="facts" role="status" aria-label="Result">{cells}</dl>'


def duration(seconds: float) -> str:
    """``35 ms``, ``4.2 s``."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
