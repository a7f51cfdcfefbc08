"""The notebooks: committed without outputs, and each run from top to bottom as a reader runs it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fanet_lightning.data.synthetic.dataset import prepare_synthetic
from tests.report.make_runs import make_sweep

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install 'fanet-lightning[notebooks]'")

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
NAMES = (
    "01_anchors_and_matching",
    "02_agglomeration_and_context",
    "03_reading_the_ablation_table",
    "04_detect_and_redact",
)
STRIP = ROOT / "scripts" / "strip_notebooks.py"


def read(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_of(notebook: Any) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_committed_without_outputs(name: str) -> None:
    content = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    nbformat.validate(content)
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    for cell in content["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None and set(cell["metadata"]) <= {"tags"}


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_reads_well(name: str) -> None:
    """A title, no leftovers, no path of one machine, links and names of modules that lead somewhere."""
    notebook = read(name)
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and re.match(rf"# {int(name[:2])}\. \S", first.source)
    text = "\n".join(cell.source for cell in notebook.cells)
    assert not re.search(r"TODO|FIXME|PLACEHOLDER|/(?:home|root|work)/|(?<![\w:/.}<])/[A-Za-z]+/\S", text)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#]+)\)", cell.source):
                assert target.startswith("http") or (FOLDER / target).exists(), target
            if "Where this is in the code" in cell.source:
                for file in re.findall(r"`([\w/]+\.py)`", cell.source):
                    assert (ROOT / "src" / "fanet_lightning" / file).is_file(), file


def strip(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(STRIP), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_stripping_gives_back_what_is_committed(tmp_path: Path) -> None:
    committed = FOLDER / f"{NAMES[0]}.ipynb"
    notebook = read(NAMES[0])
    notebook.metadata["language_info"] = {"name": "python", "version": "3.11.7"}
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            cell.execution_count = number
            cell.outputs = [nbformat.v4.new_output("stream", text="something")]
            cell.metadata["execution"] = {"iopub.status.busy": "2026-01-01"}
    used = tmp_path / "used.ipynb"
    nbformat.write(notebook, used)

    checked = strip("--check", used)
    assert checked.returncode == 1 and str(used) in checked.stdout
    assert used.read_text(encoding="utf-8") != committed.read_text(encoding="utf-8")
    assert strip(used).returncode == 0
    assert used.read_text(encoding="utf-8") == committed.read_text(encoding="utf-8")
    assert strip("--check", used).returncode == strip("--check").returncode == 0


@pytest.mark.parametrize("content", [None, "{}"])
def test_stripping_something_else_says_so_in_one_line(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "other.ipynb"
    if content is not None:
        path.write_text(content)
    done = strip(path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {path} is no notebook") and done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """``executed(name, names_of_variables)`` → the run notebook and those variables. Each notebook runs once."""
    pytest.importorskip("nbclient", reason="nbclient is not installed: pip install 'fanet-lightning[notebooks]'")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install 'fanet-lightning[notebooks]'")

    @cache
    def run_once(name: str) -> tuple[Any, dict[str, Any]]:
        return execute(read(name), tmp_path_factory.mktemp(name), WANTED[name])

    return run_once


def execute(
    notebook: Any, folder: Path, wanted: tuple[str, ...] = (), environment: dict[str, str] | None = None
) -> tuple[Any, dict[str, Any]]:
    """Run a notebook in a folder of its own: no data set, one core, no way into the network."""
    from nbclient import NotebookClient

    cell = nbformat.v4.new_code_cell(
        "import json as _json, numpy as _np\n"
        f"print(_json.dumps({{{', '.join(f'{word!r}: {word}' for word in wanted)}}}, "
        "default=lambda x: x.tolist()))"
    )
    notebook.cells.append(cell)
    own = {
        key: value for key, value in os.environ.items() if key not in ("WIDER_FACE_ROOT", "FANET_RUNS", "MPLBACKEND")
    }
    nowhere = "http://127.0.0.1:9"
    own |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "http_proxy": nowhere, "https_proxy": nowhere}
    own |= environment or {}
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute(env=own)
    printed = notebook.cells.pop().outputs[0]["text"]
    return notebook, json.loads(printed)


def figures(notebook: Any) -> list[bytes]:
    return [
        output["data"]["image/png"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]


def text_outputs(notebook: Any) -> str:
    parts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            parts.append(output.get("text", "") or output.get("data", {}).get("text/markdown", ""))
    return "\n".join(parts)


# Variables that the tests below read, and how many figures a reader sees.
WANTED = {
    NAMES[0]: ("MATCHED_ANCHORS", "matched_by_map", "first_counts", "second_counts", "face_xyxy", "HEIGHT", "WIDTH"),
    NAMES[1]: ("face_curve", "background_curve", "SIZES_OF_FACES", "REACH", "radii"),
    NAMES[2]: ("PAIRED_GAIN", "HELD", "BEYOND", "OUR_STEPS", "ours", "areas_hard"),
    NAMES[3]: ("counts", "COLOURS_LEFT", "written", "HAS_VIDEO", "hits"),
}
FIGURES = {NAMES[0]: 5, NAMES[1]: 7, NAMES[2]: 7, NAMES[3]: 6}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_from_top_to_bottom(name: str, executed: Callable[..., Any]) -> None:
    notebook, _ = executed(name)
    expected = FIGURES[name]
    if name == NAMES[3]:
        # The video is shown where it can be made.
        expected -= 0 if executed(name)[1]["HAS_VIDEO"] else 1
    assert len(figures(notebook)) == expected
    errors = [output for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type == "error"]
    assert errors == []


def iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height)


def anchors_above(face: list[float], height: int, width: int, threshold: float) -> list[list[float]]:
    """IoU of every anchor above a threshold, by map; loops and no torch."""
    found = []
    for stride in (4, 8, 16, 32, 64, 128):
        half, own = 2 * stride, []
        for row in range(-(-height // stride)):
            for column in range(-(-width // stride)):
                x, y = (column + 0.5) * stride, (row + 0.5) * stride
                overlap = iou(face, [x - half, y - half, x + half, y + half])
                if overlap > threshold:
                    own.append(overlap)
        found.append(own)
    return found


@pytest.mark.slow
def test_anchors_of_the_photograph_are_counted_right(executed: Callable[..., Any]) -> None:
    _, values = executed(NAMES[0])
    (face,), height, width = values["face_xyxy"], values["HEIGHT"], values["WIDTH"]
    expected = [len(own) for own in anchors_above(face, height, width, 0.35)]
    assert values["matched_by_map"] == expected and values["MATCHED_ANCHORS"] == sum(expected)
    for key, first in values["first_counts"].items():
        factor = int(key)
        small = [x / factor for x in face]
        shape = height // factor, width // factor
        above = sum(len(own) for own in anchors_above(small, *shape, 0.35))
        assert first == max(above, 1)  # rule (i)
        # Second stage: below six anchors the best six of the others join, if they overlap by more than 0.1.
        others = sum(len(own) for own in anchors_above(small, *shape, 0.1)) - first
        assert values["second_counts"][key] == (first if first >= 6 else first + min(6, others))


@pytest.mark.slow
def test_levels_tell_small_faces_better(executed: Callable[..., Any]) -> None:
    """What the second notebook's text says of its curves."""
    _, values = executed(NAMES[1])
    face, background = np.array(values["face_curve"]), np.array(values["background_curve"])
    sizes = np.array(values["SIZES_OF_FACES"])
    assert face.shape == background.shape == (3, len(sizes))
    small = (sizes >= 10) & (sizes <= 12)
    assert (face[1, small] > face[0, small] + 0.15).all() and (face[2, small] > face[0, small] + 0.15).all()
    assert (face[:, sizes >= 24] > 0.95).all()
    assert values["REACH"] == {"false": [3, 3], "true": [5, 3]}
    assert values["radii"] == sorted(values["radii"])


@pytest.mark.slow
def test_the_ablation_notebook_shows_what_was_measured(executed: Callable[..., Any]) -> None:
    notebook, values = executed(NAMES[2])
    # The steps of docs/experiments.md, found by plain splitting.
    section = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8").split("## 4. The ablation grid")[1]
    table = section.split("| step | hard | the paper | |\n|---|---|---|---|\n")[1].split("\n\n")[0].splitlines()
    measured = [line.split("|")[2].split("[")[0].strip().replace("−", "-") for line in table]
    assert values["OUR_STEPS"] == len(table)
    assert [row[0] for row in values["ours"].values()] == [float(value) for value in measured]
    assert values["areas_hard"] == pytest.approx({"FANet": 0.8954, "S3FD": 0.8590}, abs=5e-5)
    # Its claims about noise.
    assert values["PAIRED_GAIN"] > 2 and values["HELD"] >= 0.85 and values["BEYOND"]["320"] > 0.5
    # Whatever is drawn by lot says so above the figure.
    source = "\n".join(code_of(notebook))
    assert source.count("(simulated)") >= 4 and source.count("(real)") == 1


@pytest.mark.slow
def test_the_detection_notebook_finds_and_hides_faces(executed: Callable[..., Any]) -> None:
    notebook, values = executed(NAMES[3])
    assert values["counts"] == sorted(values["counts"], reverse=True) and values["counts"][1] >= 8
    assert 16 <= values["COLOURS_LEFT"] <= 64
    assert values["hits"]["short640"] > values["hits"]["original"]
    assert any(name.startswith("images/") for name in values["written"])
    assert "broken.jpg cannot be read" in text_outputs(notebook)


def with_cells(name: str, *marks: str) -> Any:
    """The notebook's code cells that hold one of the marks, alone."""
    notebook = read(name)
    notebook.cells = [
        cell for cell in notebook.cells if cell.cell_type == "code" and any(m in cell.source for m in marks)
    ]
    assert len(notebook.cells) == len(marks)
    return notebook


@pytest.mark.slow
def test_a_folder_of_wider_face_joins_the_table(tmp_path: Path, executed: Callable[..., Any]) -> None:
    """``WIDER_FACE_ROOT``: the synthetic images have its layout."""
    root = prepare_synthetic(tmp_path / "drawn", train_images=1, val_images=12)
    notebook = with_cells(NAMES[0], "WIDER_ROOT = ", "%matplotlib inline", "import SizedImage", "prepare_synthetic(")
    done, _ = execute(notebook, tmp_path, environment={"WIDER_FACE_ROOT": str(root)})
    table = text_outputs(done)
    assert "| synthetic images |" in table and "| WIDER FACE val, every fourth image |" in table


@pytest.mark.slow
def test_a_folder_of_runs_is_reported(tmp_path: Path, executed: Callable[..., Any]) -> None:
    """``FANET_RUNS``: the report's tables."""
    make_sweep(tmp_path / "runs", images=30)
    notebook = with_cells(NAMES[2], "RUNS = os", "%matplotlib inline", "if RUNS:")
    done, _ = execute(notebook, tmp_path, environment={"FANET_RUNS": str(tmp_path / "runs")})
    assert "3-level + HL + context" in text_outputs(done) and "synthetic faces, 30 images" in text_outputs(done)
