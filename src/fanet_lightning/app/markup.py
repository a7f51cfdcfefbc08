"""The pieces of HTML that the page is made of."""

from collections.abc import Sequence
from html import escape

from fanet_lightning.app.results import FoundVideo, PageImage, rows
from fanet_lightning.cli.errors import InputError, counted


def heading(model: str, device: str) -> str:
    """The page's title and which model answers."""
    return (
        f"<h1>Face detection</h1><p>Model <strong>{escape(model)}</strong> on {escape(device)}. Images and videos are "
        "looked at on the computer that runs this page and sent nowhere else.</p>"
    )


def footing(keep_minutes: float) -> str:
    """What happens to the uploads, and what the numbers mean."""
    return (
        f"<p>Uploads and results are deleted after {keep_minutes:g} minutes, and when the program ends. "
        "Boxes are x1, y1, x2, y2 in pixels of the upright image, from its upper left corner; width = x2 − x1. "
        "A score is the detector's confidence from 0 to 1. Redaction hides the faces that are found: look for those "
        "that were missed, and lower the threshold.</p>"
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


def image_facts(image: PageImage, threshold: float) -> str:
    """Count, size and time of one image."""
    count = image.count(threshold)
    items = {
        f"score {threshold:.2f} or more": faces(count),
        "weaker ones": f"{len(image.faces) - count:,}",
        "size": f"{image.width:,} × {image.height:,} px",
        "network": _duration(image.network_seconds),
    }
    return _facts(items)


def images_facts(images: Sequence[PageImage], problems: Sequence[InputError], threshold: float) -> str:
    """Sums over several images, and what could not be read."""
    counts = [image.count(threshold) for image in images]
    items = {
        f"score {threshold:.2f} or more": faces(sum(counts)),
        "images": f"{len(images):,}",
        "without a face": f"{counts.count(0):,}",
        "network": _duration(sum(image.network_seconds for image in images)),
    }
    return "".join(map(problem, problems)) + _facts(items)


def video_facts(video: FoundVideo, max_seconds: float) -> str:
    """What was found in a video, and what the written one lacks."""
    counts = [len(frame["detections"]) for frame in video.faces]
    items = {
        "most in one frame": faces(max(counts, default=0)),
        "frames": f"{len(counts):,} at {video.frames_per_second:.4g}/s",
        "took": _duration(video.seconds),
        "sound": "kept" if video.sound_kept else "none",
    }
    cut = f"Only the first {max_seconds:g} seconds; max_video_seconds=… of the program takes more."
    notes = [*([cut] if video.cut else []), *video.notes]
    return _facts(items) + "".join(map(hint, notes))


def detections_table(image: PageImage, threshold: float) -> str:
    """One row a face: its number, its box in pixels of the original, its score."""
    columns = ("face", "x1", "y1", "x2", "y2", "width", "height", "score")
    head = "".join(f'<th scope="col">{name}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row">{number}</th>' + "".join(f"<td>{side:.2f}</td>" for side in box)
        + f"<td>{score:.4f}</td></tr>"
        for number, (*box, score) in enumerate((row.values() for row in rows(image.faces.above(threshold))), start=1)
    )  # fmt: skip
    # To be reached and scrolled by the keyboard.
    return (
        '<div class="rows detections" tabindex="0" role="region" aria-label="Detections"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def faces(count: int) -> str:
    """``1 face``, ``2 faces``."""
    return counted(count, "face")


def _duration(seconds: float) -> str:
    """``35 ms``, ``4.2 s``."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _facts(items: dict[str, str]) -> str:
    """Names and values side by side, the first one large."""
    cells = "".join(
        f"<div{' class=main' if number == 0 else ''}><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for number, (name, value) in enumerate(items.items())
    )
    return f'<dl class="facts" role="status" aria-label="Result">{cells}</dl>'
