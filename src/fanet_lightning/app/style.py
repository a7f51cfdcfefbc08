"""How the page looks, and the pieces of HTML that it is made of."""

from collections.abc import Sequence
from html import escape
from typing import Any

from fanet_lightning.app.results import Film, Picture, detections
from fanet_lightning.cli.errors import InputError, counted
from fanet_lightning.detect.multiscale import too_large_for
from fanet_lightning.models.pretrained import DEFAULT_PROTOCOL

# Fonts of the reader's own system: nothing is fetched from elsewhere, so the page works without a network.
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Ubuntu", "sans-serif")
MONOSPACED = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

CSS = """
gradio-app, .gradio-container, .gradio-container > .main, main.contain {min-width: 0 !important}
.gradio-container {width: 100% !important; max-width: 1280px !important; margin: 0 auto !important;
  --body-text-color-subdued: #475569; --block-info-text-color: #475569; --block-label-text-color: #334155}
.dark .gradio-container, .gradio-container.dark {--body-text-color-subdued: #a9b6c8;
  --block-info-text-color: #a9b6c8; --block-label-text-color: #cbd5e1}
#head h1 {font-size: 1.7rem; font-weight: 650; margin: .2rem 0 .1rem}
#head p {margin: 0; color: var(--body-text-color-subdued)}
#settings {align-items: stretch}
.facts {display: flex; flex-wrap: wrap; gap: .5rem; margin: 0; padding: 0}
.facts > div {background: var(--block-background-fill); border: 1px solid var(--border-color-primary);
  border-radius: 10px; padding: .45rem .8rem; min-width: 5.5rem; flex: 1 1 auto}
.facts dt {font-size: .78rem; color: var(--body-text-color-subdued); margin: 0}
.facts dd {font-size: 1.05rem; font-weight: 600; margin: 0; font-variant-numeric: tabular-nums; white-space: nowrap}
.facts .main {background: var(--color-accent-soft); border-color: var(--color-accent)}
.facts .main dd {font-size: 1.35rem}
.note {color: var(--body-text-color-subdued); margin: .5rem 0 0; font-size: .92rem}
.problem {border-left: 4px solid #c62828; background: #fdecea; color: #5f1411; border-radius: 6px;
  padding: .6rem .9rem; margin: 0 0 .5rem; overflow-wrap: anywhere}
.dark .problem {background: #3b1614; color: #ffd9d5}
.working progress {width: 100%; height: .7rem; appearance: none; border: 0; border-radius: 6px; overflow: hidden;
  background: var(--border-color-primary)}
.working progress::-webkit-progress-bar {background: var(--border-color-primary)}
.working progress::-webkit-progress-value {background: var(--color-accent)}
.working progress::-moz-progress-bar {background: var(--color-accent)}
.rows {overflow-x: auto}
.rows table, .rows tr {border: 0 !important}
.rows table {border-collapse: collapse; width: 100%; font-size: .92rem}
.rows table th, .rows table td {text-align: right; padding: .3rem .6rem; border: 0 !important;
  border-bottom: 1px solid var(--border-color-primary) !important; font-weight: 400;
  white-space: nowrap; font-variant-numeric: tabular-nums}
.rows table thead th {font-weight: 600}
.rows table th:first-child {text-align: left}
.rows {margin-top: .6rem}
.detections {max-height: 360px; overflow: auto; border: 1px solid var(--border-color-primary); border-radius: 10px}
.detections thead th {position: sticky; top: 0; background: var(--background-fill-secondary)}
#foot p {font-size: .85rem; color: var(--body-text-color-subdued); margin: .3rem 0}
.html-container {padding: 0 !important}
a:focus-visible, button:focus-visible, input:focus-visible {outline: 2px solid var(--color-accent); outline-offset: 2px}
/* Gradio's trimming fetches its program from another host; the page is to work without one. */
#film-in button[aria-label^="Trim"], #film-in button[aria-label^="Reset"] {display: none}
@media (max-width: 640px) {
  .gradio-container > .main {padding: .6rem !important}
  .facts > div {flex: 1 1 45%; min-width: 0; padding: .35rem .6rem}
  .facts .main {flex-basis: 100%}
  #picture-out, #picture-in {height: 300px !important}
  #head h1 {font-size: 1.35rem}
  .rows table th:first-child {max-width: 9rem; overflow: hidden; text-overflow: ellipsis}
  #several-out .grid-container {grid-template-columns: repeat(2, minmax(0, 1fr)) !important}
}
"""


def theme(gradio: Any) -> Any:
    """Gradio's plainest theme with the system's fonts."""
    return gradio.themes.Default(
        font=list(FONTS), font_mono=list(MONOSPACED), primary_hue="blue", neutral_hue="slate", radius_size="md"
    )


def heading(model: str, device: str) -> str:
    """The page's title and which model answers."""
    return (
        f"<h1>Face detection</h1><p>Model <strong>{escape(model)}</strong> on {escape(device)}. Pictures and films are "
        "looked at on the computer that runs this page and sent nowhere else.</p>"
    )


def footing(keep_minutes: float) -> str:
    """What happens to the uploads, and what the numbers mean."""
    return (
        f"<p>Uploads and results are deleted after {keep_minutes:g} minutes, and when the program ends. "
        "Boxes are x1, y1, x2, y2 in pixels of the upright picture, from its upper left corner; width = x2 − x1. "
        "A score is the detector's confidence from 0 to 1. Redaction hides the faces that are found: look for those "
        "that were missed, and lower the threshold.</p>"
    )


def hint(text: str) -> str:
    """What to do next, where no result is there yet."""
    return f'<p class="note" role="status">{escape(text)}</p>'


def problem(error: InputError | str) -> str:
    """What went wrong, read out at once by screen readers."""
    return f'<p class="problem" role="alert">{escape(" ".join(str(error).split()))}</p>'


def facts(items: Sequence[tuple[str, str]], label: str) -> str:
    """Names and values side by side, the first one large."""
    cells = "".join(
        f"<div{' class=main' if number == 0 else ''}><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for number, (name, value) in enumerate(items)
    )
    return f'<dl class="facts" role="status" aria-label="{escape(label)}">{cells}</dl>'


def faces(count: int) -> str:
    """``1 face``, ``2 faces``."""
    return f"{count:,} {'face' if count == 1 else 'faces'}"


def duration(seconds: float) -> str:
    """``35 ms``, ``4.2 s``."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def picture_facts(picture: Picture, threshold: float, drawing_seconds: float) -> str:
    """Count, size and times of one picture."""
    count = picture.count(threshold)
    items = [
        (f"score {threshold:.2f} or more", faces(count)),
        ("weaker ones", f"{len(picture.scores) - count:,}"),
        ("size", f"{picture.width:,} × {picture.height:,} px"),
        ("decoding", duration(picture.decode_seconds)),
        ("network", duration(picture.network_seconds)),
        ("drawing", duration(drawing_seconds)),
    ]
    return facts(items, "Result") + _large_picture_note([picture])


def pictures_facts(pictures: Sequence[Picture], problems: Sequence[InputError], threshold: float) -> str:
    """Sums over several pictures, a row for each, and what could not be read."""
    total = sum(picture.count(threshold) for picture in pictures)
    network = sum(picture.network_seconds for picture in pictures)
    items = [
        (f"score {threshold:.2f} or more", faces(total)),
        ("pictures", f"{len(pictures):,}"),
        ("without a face", f"{sum(picture.count(threshold) == 0 for picture in pictures):,}"),
        ("network", duration(network)),
        ("a picture", duration(network / len(pictures)) if pictures else "–"),
    ]
    lines = "".join(_picture_row(picture, threshold) for picture in pictures)
    head = "".join(f'<th scope="col">{name}</th>' for name in ("picture", "faces", "best score", "pixels", "network"))
    table = (
        '<div class="rows" tabindex="0" role="region" aria-label="Faces of each picture"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )
    return (
        "".join(map(problem, problems))
        + facts(items, "Results")
        + _large_picture_note(pictures)
        + (table if pictures else "")
    )


def _large_picture_note(pictures: Sequence[Picture]) -> str:
    """A better protocol for pictures that are larger than what the networks are trained on; "" where none is."""
    large = [p for p in pictures if too_large_for(p.protocol, p.width, p.height)]
    if not large:
        return ""
    return _large_hint("Large picture" if len(pictures) == 1 else counted(len(large), "large picture"))


def _large_hint(what: str) -> str:
    return hint(f"{what}: faces over some 400 pixels are found better with protocol {DEFAULT_PROTOCOL}.")


def detections_table(picture: Picture | None, threshold: float) -> str:
    """One row a face: its number, its box in pixels of the original, its score; nothing where there is no picture."""
    if picture is None:
        return ""
    columns = ("face", "x1", "y1", "x2", "y2", "width", "height", "score")
    head = "".join(f'<th scope="col">{name}</th>' for name in columns)
    lines = "".join(
        f'<tr><th scope="row">{number}</th>{"".join(f"<td>{side:.2f}</td>" for side in box)}<td>{score:.4f}</td></tr>'
        for number, (*box, score) in enumerate((face.values() for face in detections(picture, threshold)), start=1)
    )
    return (
        '<div class="rows detections" tabindex="0" role="region" aria-label="Detections"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _picture_row(picture: Picture, threshold: float) -> str:
    best = f"{picture.scores[0]:.2f}" if len(picture.scores) else "–"
    cells = (
        f"{picture.count(threshold):,}", best, f"{picture.width:,} × {picture.height:,}",
        duration(picture.network_seconds),
    )  # fmt: skip
    name = escape(picture.name)
    return f'<tr><th scope="row" title="{name}">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def working(done: int, total: int | None, what: str) -> str:
    """A progress bar, without a value where the total is not known."""
    value = "" if total is None else f' value="{done}" max="{max(total, 1)}"'
    text = f"{done:,} {what}" if total is None else f"{done:,} of {total:,} {what}"
    return f'<div class="working"><progress aria-label="Progress"{value}></progress><p class="note">{text}</p></div>'


def film_facts(film: Film, max_seconds: float, protocol: str) -> str:
    """What was found in a film, and what the written one lacks."""
    items = [
        ("most in one frame", faces(film.most_faces)),
        ("on average", f"{film.mean_faces:.1f} a frame"),
        ("frames", f"{film.frames:,} at {film.frames_per_second:.4g}/s"),
        ("took", duration(film.seconds)),
        ("speed", f"{film.frames / max(film.seconds, 1e-9):.1f} frames/s"),
        ("sound", "kept" if film.sound_kept else "none"),
    ]
    notes = [*film.notes]
    if film.cut:
        notes.insert(0, f"Only the first {max_seconds:g} seconds; max_video_seconds=… of the program takes more.")
    large = _large_hint("Large film") if too_large_for(protocol, *film.size_wh) else ""
    return facts(items, "Result") + "".join(f'<p class="note">{escape(note)}</p>' for note in notes) + large
