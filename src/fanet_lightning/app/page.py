"""The page: three tabs, for an image, several and a video, and the settings that they share. Imports Gradio."""

import importlib.util
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from fanet_lightning.app.actions import COLUMNS, EMPTY, EMPTY_SEVERAL, Actions, hint
from fanet_lightning.app.results import NO_REDACTION
from fanet_lightning.app.settings import HIGHEST_THRESHOLD, LOWEST_THRESHOLD, Settings
from fanet_lightning.detect.detector import FaceDetector
from fanet_lightning.detect.inputs import IMAGE_SUFFIXES
from fanet_lightning.detect.redaction import REDACTIONS

# What a person with photos needs; the others of conf/protocol are for comparisons with papers.
PROTOCOLS = {
    "auto": "photos of any size", "vga640": "quick, for large faces", "multiscale_quick": "slow, for more small faces",
    "original": "the image as it is",
}  # fmt: skip
# Hands a file over to the reader: a link that is clicked at once. `{url, orig_name}` is what Gradio knows of it.
SAVE = """(file) => {
  if (!file) return;
  const link = document.createElement("a");
  link.href = file.url; link.download = file.orig_name || "faces";
  document.body.appendChild(link); link.click(); link.remove();
}"""
# Gradio tells errors in a box that floats over the page: its text goes into a line of the page instead, until another
# file is chosen. The reason is said with files that are too large.
TELL_IN_PLACE = """() => {
  const line = document.querySelector("#problem p");
  new MutationObserver(() => {
    const toast = document.querySelector("[data-testid=toast-text]:not(.told)");
    if (!toast) return;
    toast.classList.add("told");
    const text = toast.textContent;
    line.textContent = text.includes("maximum allowed size") ? `${text}. ${REASON}` : text;
    line.hidden = false;
    document.querySelector("[data-testid=toast-close]").click();
  }).observe(document.body, {childList: true, subtree: true});
  for (const kind of ["change", "drop"])
    document.addEventListener(kind, () => { line.hidden = true; }, true);
}"""
# The page's functions are no interface for other programs. The network and the drawing wait in lines of their own, so
# the slider answers while a video is being looked at.
NETWORK: dict[str, Any] = {"concurrency_id": "network", "concurrency_limit": 1, "api_visibility": "private"}
DRAWING: dict[str, Any] = {"concurrency_id": "draw", "concurrency_limit": 2, "api_visibility": "private"}
# A slider that is pulled asks for many images: the last one counts, and nothing flickers meanwhile.
AT_ONCE: dict[str, Any] = {"trigger_mode": "always_last", "show_progress": "hidden", **DRAWING}
CHECK_FILES_SECONDS = 60


def launch_options(settings: Settings) -> dict[str, Any]:
    """How the page looks and what it offers, as ``Blocks.launch`` takes it."""
    # Fonts of the reader's own system.
    fonts: dict[str, Any] = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return {
        "share": False, "quiet": True, "show_error": True, "prevent_thread_lock": True, "footer_links": [],
        "theme": gr.themes.Default(primary_hue="blue", neutral_hue="slate", **fonts), "run_history": False,
        "ssr_mode": False, "max_file_size": settings.max_bytes,
        "css_paths": [Path(__file__).with_name("style.css")], "inbrowser": settings.open_browser,
        "state_session_capacity": 100,
    }  # fmt: skip


def build_page(detector: FaceDetector, settings: Settings, folder: Path) -> Any:
    """The page as Gradio's ``Blocks``, not yet served; results are written in ``folder``, inside Gradio's uploads."""
    actions = Actions(detector, settings, folder)
    seconds, chosen = settings.keep_minutes * 60, settings.protocol["name"]
    protocols = [(f"{name} – {words}", name) for name, words in PROTOCOLS.items()]
    reason = (
        "More would fill the disk of the computer that runs the page; max_upload_mb=… of the program moves the limit. "
        f"Of a video the first {settings.max_video_seconds:g} seconds are looked at: cut it to them."
    )
    with gr.Blocks(title="Face detection", delete_cache=(CHECK_FILES_SECONDS, int(seconds) or 1)) as page:
        gr.HTML(
            f"<h1>Face detection</h1><p>Model <strong>{escape(settings.model_name)}</strong> on "
            f"{escape(detector.runs_on)}. Images and videos are looked at on the computer that runs this page and sent "
            "nowhere else.</p>",
            elem_id="head",
        )
        with gr.Row(elem_id="settings"):
            threshold = gr.Slider(
                LOWEST_THRESHOLD, HIGHEST_THRESHOLD, settings.threshold, step=0.01, label="Threshold", min_width=260,
                elem_id="threshold", info="Lowest score of a face that counts.", buttons=[],
            )  # fmt: skip
            protocol = gr.Dropdown(
                protocols if chosen in PROTOCOLS else [*protocols, chosen], value=chosen, label="Protocol",
                elem_id="protocol", min_width=260, info="The size at which the network sees the image.",
                filterable=False,
            )  # fmt: skip
            redaction = gr.Radio(
                [NO_REDACTION, *REDACTIONS], value=NO_REDACTION, label="Redact", elem_id="redact", min_width=260,
                info="Hide the faces instead of framing them.",
            )  # fmt: skip
        controls = [protocol, threshold, redaction]
        gr.HTML('<p class="problem" role="alert" hidden></p>', elem_id="problem")
        with gr.Tab("Image", id="image"):
            _image_tab(actions, controls, seconds)
        with gr.Tab("Several images", id="several"):
            _several_tab(actions, controls, seconds)
        with gr.Tab("Video", id="video"):
            _video_tab(actions, controls)
        gr.HTML(
            "<p>Nothing is stored: uploads, the camera's images and results are deleted after "
            f"{settings.keep_minutes:g} minutes, and when the program ends. Boxes are x1, y1, x2, y2 in pixels of the "
            "upright image, from its upper left corner; width = x2 − x1. A score is the detector's confidence from 0 "
            "to 1. Redaction hides the faces that are found: look for those that were missed, and lower the "
            "threshold.</p>",
            elem_id="foot",
        )
        page.load(None, None, None, js=TELL_IN_PLACE.replace("${REASON}", reason))
    return page


def _as_uploaded(component: Any) -> Any:
    """The component hands over the path of the upload: Gradio itself would decode images on the way, without EXIF
    orientation and with alpha gone, and a damaged one would end in a message that says nothing."""
    component.preprocess = lambda payload: None if payload is None else payload.path
    return component


def _image_tab(actions: Actions, controls: list[Any], seconds: float) -> None:
    protocol, threshold, redaction = controls
    found = gr.State(None, time_to_live=seconds)
    with gr.Row():
        with gr.Column(min_width=300):
            upload = _as_uploaded(gr.Image(
                type="filepath", sources=["upload", "clipboard", "webcam"], label="Image", height=420,
                elem_id="image-in", buttons=["fullscreen"],
            ))  # fmt: skip
        with gr.Column(min_width=300):
            shown = gr.Image(
                type="filepath", label="Faces", height=420, interactive=False, elem_id="image-out",
                buttons=["fullscreen"], alt_text="The image with its faces framed or hidden",
            )  # fmt: skip
    summary = gr.HTML(hint(EMPTY), elem_id="image-summary")
    with gr.Row():
        save_image, save_json = (gr.Button(text, size="md", min_width=120) for text in ("Save image", "Save JSON"))
    rows = gr.Dataframe(
        headers=list(COLUMNS), datatype="number", interactive=False, max_height=360, elem_id="image-table", buttons=[],
        label="Detections", show_label=False,
    )  # fmt: skip
    content = _json("image-json")
    shows = [shown, summary, rows, content]
    gr.on(
        [upload.change, protocol.change], actions.find, [upload, *controls], [found, *shows], show_progress_on=shown,
        **NETWORK,
    )  # fmt: skip
    gr.on([threshold.change, redaction.change], actions.redraw, [found, threshold, redaction], shows, **AT_ONCE)
    _saves(save_image, actions.save_image, [found, threshold, redaction])
    _saves(save_json, actions.save_json, [content])


def _several_tab(actions: Actions, controls: list[Any], seconds: float) -> None:
    _, threshold, redaction = controls
    found = gr.State(None, time_to_live=seconds)
    upload = gr.File(
        file_count="multiple", type="filepath", file_types=sorted(IMAGE_SUFFIXES), elem_id="several-in", height=220,
        label=f"Images, at most {actions.settings.max_images}",
    )  # fmt: skip
    again = gr.Button("Find faces", variant="primary")
    summary = gr.HTML(hint(EMPTY_SEVERAL), elem_id="several-summary")
    gallery = gr.Gallery(
        label="Faces", columns=3, height="auto", object_fit="contain", interactive=False, elem_id="several-out",
        buttons=["fullscreen"],
    )  # fmt: skip
    content = _json("several-json")
    shows = [gallery, summary, content]
    gr.on(
        [upload.change, again.click], actions.find_several, [upload, *controls], [found, *shows],
        show_progress="hidden", **NETWORK,
    )  # fmt: skip
    gr.on([threshold.change, redaction.change], actions.redraw_several, [found, threshold, redaction], shows, **AT_ONCE)
    _saves(gr.Button("Save JSON"), actions.save_json, [content])


def _video_tab(actions: Actions, controls: list[Any]) -> None:
    if importlib.util.find_spec("av") is None:
        gr.HTML(hint("Videos need the package av: pip install 'fanet-lightning[video]', then start the page again."))
        return
    with gr.Row():
        with gr.Column(min_width=300):
            upload = _as_uploaded(gr.Video(sources=["upload"], label="Video", height=360, elem_id="video-in"))
        with gr.Column(min_width=300):
            shown = gr.Video(label="Faces", height=360, interactive=False, elem_id="video-out", buttons=["download"])
    with gr.Row():
        start, stop = gr.Button("Find faces", variant="primary", min_width=120), gr.Button("Stop", min_width=120)
    limits = f"the first {actions.settings.max_video_seconds:g} seconds, files of {actions.settings.max_upload_mb:g} MB"
    summary = gr.HTML(hint(f"A video: {limits}. vga640 is the quickest protocol."), elem_id="video-summary")
    content = _json("video-json")
    running = start.click(
        actions.find_in_video, [upload, *controls], [shown, summary, content], show_progress="hidden", **NETWORK
    )
    stop.click(lambda: hint("Stopped; nothing was kept."), None, summary, cancels=[running], api_visibility="private")
    _saves(gr.Button("Save JSON"), actions.save_json, [content])


def _json(elem_id: str) -> Any:
    with gr.Accordion("JSON", open=False, elem_id=elem_id):
        return gr.JSON(label="Detections", max_height=400)


def _saves(button: Any, make: Any, inputs: list[Any]) -> None:
    """The button makes a file when it is asked for one, and the browser saves it."""
    file = gr.File(visible=False)
    button.click(make, inputs, file, show_progress="hidden", **DRAWING).success(None, file, None, js=SAVE)
