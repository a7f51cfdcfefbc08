"""The notebooks: committed without outputs, and each run from top to bottom as a reader runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_committed_without_outputs(name: str) -> None:
    content = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    nbformat.validate(content)
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    for cell in content["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None and set(cell["metadata"]) <= {"tags"}


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


def execute(notebook: Any, folder: Path, wanted: tuple[str, ...] = (), **environment: str) -> tuple[str, int, Any]:
    """Run a notebook in a folder of its own: no data set, one core, no way into the network.

    Returns what it prints, how many figures a reader sees, and the variables ``wanted``.
    """
    for package in ("nbclient", "ipykernel"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'fanet-lightning[notebooks]'")
    from nbclient import NotebookClient

    values = f"{{{', '.join(f'{word!r}: {word}' for word in wanted)}}}"
    asked = f"import json as _json\nprint(_json.dumps({values}, default=lambda x: x.tolist()))"
    notebook.cells.append(nbformat.v4.new_code_cell(asked))
    own = {
        key: value for key, value in os.environ.items() if key not in ("WIDER_FACE_ROOT", "FANET_RUNS", "MPLBACKEND")
    }
    nowhere = "http://127.0.0.1:9"
    own |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "http_proxy": nowhere, "https_proxy": nowhere, **environment}
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute(env=own)
    printed = notebook.cells.pop().outputs[0]["text"]
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    texts = [output.get("text", "") or output.get("data", {}).get("text/markdown", "") for output in outputs]
    return "\n".join(texts), sum("image/png" in output.get("data", {}) for output in outputs), json.loads(printed)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "figures"), list(zip(NAMES, (5, 7, 7, 6), strict=True)))
def test_a_notebook_runs_from_top_to_bottom(name: str, figures: int, tmp_path: Path) -> None:
    wanted = ("counts", "COLOURS_LEFT", "written", "HAS_VIDEO", "hits") if name == NAMES[3] else ()
    printed, shown, values = execute(read(name), tmp_path, wanted)
    assert shown == figures - (not values.get("HAS_VIDEO", True))  # where it can be made
    if values:
        assert values["counts"] == sorted(values["counts"], reverse=True) and values["counts"][1] >= 8
        assert 16 <= values["COLOURS_LEFT"] <= 64
        assert values["hits"]["short640"] > values["hits"]["original"]
        assert any(name.startswith("images/") for name in values["written"])
        assert "broken.jpg cannot be read" in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "marks", "variable", "shown"),
    [
        (NAMES[0], ("WIDER_ROOT = ", "%matplotlib inline", "import SizedImage", "prepare_synthetic("),
         "WIDER_FACE_ROOT", ("| synthetic images |", "| WIDER FACE val, every fourth image |")),
        (NAMES[2], ("RUNS = os", "%matplotlib inline", "if RUNS:"),
         "FANET_RUNS", ("3-level + HL + context", "synthetic faces, 30 images")),
    ],
)  # fmt: skip
def test_a_folder_of_ones_own_joins(
    name: str, marks: tuple[str, ...], variable: str, shown: tuple[str, ...], tmp_path: Path
) -> None:
    """By the code cells with one of the marks, alone: WIDER FACE's layout, which synthetic images have, or runs."""
    root = tmp_path / "runs"
    if variable == "FANET_RUNS":
        make_sweep(root, images=30)
    else:
        root = prepare_synthetic(tmp_path / "drawn", train_images=1, val_images=12)
    notebook = read(name)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and any(own in cell.source for own in marks)]
    assert len(cells) == len(marks)
    notebook.cells = cells
    printed, *_ = execute(notebook, tmp_path, **{variable: str(root)})
    assert all(text in printed for text in shown)
