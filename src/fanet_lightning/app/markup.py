"""The pieces of HTML that the page is made of."""

from collections.abc import Sequence
from html import escape

from fanet_lightning.app.results import FoundVideo, PageImage, rows
from fanet_lightning.cli.errors import InputError, counted
from fanet_lightning.detect.multiscale import too_large_for
from fanet_lightning.models.pretrained import DEFAULT_PROTOCOL


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
    """What to do next, where no result is there yet."""
    return f'<p class="note" role="status">{escape(text)}</p>'


def problem(error: InputError | str) -> str:
    """What went wrong, read out at once by screen readers."""
    return f'<p class="problem" role="alert">{escape(" ".join(str(error).split()))}</p>'


def working(done: int, total: int | None, what: str) -> str:
    """A progress bar, without a value where the total is not known."""
    value = "" if total is None else f' value="{done}" max="{max(total, 1)}"'
    text = f"{done:,} {what}" if total is None else f"{done:,} of {total:,} {what}"
    return f'<div class="working"><progress aria-label="Progress"{value}></progress><p class="note">{text}</p></div>'


def image_facts(image: PageImage, threshold: float, drawing_seconds: float) -> str:
    """Count, size and times of one image."""
    count = image.count(threshold)
    items = {
        f"score {threshold:.2f} or more": faces(count),
        "weaker ones": f"{len(image.faces) - count:,}",
        "size": f"{image.width:,} × {image.height:,} px",
        "decoding": _duration(image.decode_seconds),
        "network": _duration(image.network_seconds),
        "drawing": _duration(drawing_seconds),
    }
    return _facts(items) + _large_hint([image])


def images_facts(images: Sequence[PageImage], problems: Sequence[InputError], threshold: float) -> str:
    """Sums over several images, a row for each, and what could not be read."""
    counts = [image.count(threshold) for image in images]
    network = sum(image.network_seconds for image in images)
    items = {
        f"score {threshold:.2f} or more": faces(sum(counts)),
        "images": f"{len(images):,}",
        "without a face": f"{counts.count(0):,}",
        "network": _duration(network),
        "an image": _duration(network / len(images)) if images else "–",
    }
    lines = [
        (
            image.name, f"{count:,}", f"{image.faces[0].score:.2f}" if image.faces else "–",
            f"{image.width:,} × {image.height:,}", _duration(image.network_seconds),
        )
        for image, count in zip(images, counts, strict=True)
    ]  # fmt: skip
    table = _table(("image", "faces", "best score", "pixels", "network"), lines, "Faces of each image")
    return "".join(map(problem, problems)) + _facts(items) + _large_hint(images) + (table if images else "")


def video_facts(video: FoundVideo, max_seconds: float, protocol: str) -> str:
    """What was found in a video, and what the written one lacks."""
    items = {
        "most in one frame": faces(max(video.counts, default=0)),
        "on average": f"{sum(video.counts) / max(1, video.frames):.1f} a frame",
        "frames": f"{video.frames:,} at {video.frames_per_second:.4g}/s",
        "took": _duration(video.seconds),
        "speed": f"{video.frames / max(video.seconds, 1e-9):.1f} frames/s",
        "sound": "kept" if video.sound_kept else "none",
    }
    cut = f"Only the first {max_seconds:g} seconds; max_video_seconds=… of the program takes more."
    notes = [*([cut] if video.cut else []), *video.notes]
    if too_large_for(protocol, *video.size_wh):
        notes.append(_LARGE.format("Large video"))
    return _facts(items) + "".join(f'<p class="note">{escape(note)}</p>' for note in notes)


def detections_table(image: PageImage, threshold: float) -> str:
    """One row a face: its number, its box in pixels of the original, its score."""
    lines = [
        (f"{number}", *(f"{side:.2f}" for side in box), f"{score:.4f}")
        for number, (*box, score) in enumerate((row.values() for row in rows(image.faces.above(threshold))), start=1)
    ]
    columns = ("face", "x1", "y1", "x2", "y2", "width", "height", "score")
    return _table(columns, lines, "Detections", "rows detections")


def faces(count: int) -> str:
    """``1 face``, ``2 faces``."""
    return counted(count, "face")


def _duration(seconds: float) -> str:
    """``35 ms``, ``4.2 s``."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


_LARGE = f"{{}}: faces over some 400 pixels are found better with protocol {DEFAULT_PROTOCOL}."


def _large_hint(images: Sequence[PageImage]) -> str:
    """A better protocol for images that are larger than what the networks are trained on."""
    large = sum(too_large_for(image.protocol, image.width, image.height) for image in images)
    return hint(_LARGE.format("Large image" if len(images) == 1 else counted(large, "large image"))) if large else ""


def _facts(items: dict[str, str]) -> str:
    """Names and values side by side, the first one large."""
    cells = "".join(
        f"<div{' class=main' if number == 0 else ''}><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for number, (name, value) in enumerate(items.items())
    )
    return f'<dl class="facts" role="status" aria-label="Result">{cells}</dl>'


def _table(columns: Sequence[str], lines: Sequence[Sequence[str]], label: str, kind: str = "rows") -> str:
    """Rows whose first cell is their heading, to be reached and scrolled by the keyboard."""
    head = "".join(f'<th scope="col">{name}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row" title="{escape(first)}">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
        for first, *cells in lines
    )  # fmt: skip
    return (
        f'<div class="{kind}" tabindex="0" role="region" aria-label="{label}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
