"""Remove what running leaves in notebooks: outputs, execution counts, notes of tools. They are committed without.

    python scripts/strip_notebooks.py                        all of notebooks/
    python scripts/strip_notebooks.py notebooks/01*.ipynb
    python scripts/strip_notebooks.py --check                changes nothing; exit code 1 where something would

Cell tags stay (``parameters``), and so do cells, their ids and their text.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def strip(notebook: Any) -> None:
    """Bring an ``nbformat`` notebook, in place, to the form that is committed."""
    notebook.metadata = METADATA
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None


def stripped_text(path: Path) -> str:
    """The file's content without what running leaves."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    # Through plain containers: METADATA is shared by all of them.
    strip(notebook)
    return str(nbformat.writes(nbformat.from_dict(notebook), version=4)) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, help="by default all of notebooks/")
    parser.add_argument("--check", action="store_true", help="only say which would change")
    arguments = parser.parse_args()
    changed = 0
    for path in arguments.notebooks or sorted(FOLDER.glob("*.ipynb")):
        try:
            text = stripped_text(path)
            if path.read_text(encoding="utf-8") == text:
                continue
            changed += 1
            print(f"{path}: {'holds outputs or notes of tools' if arguments.check else 'stripped'}")
            if not arguments.check:
                path.write_text(text, encoding="utf-8")
        except ImportError:
            print("error: this needs nbformat; pip install 'fanet-lightning[notebooks]'", file=sys.stderr)
            return 2
        except Exception as error:  # nbformat raises a dozen kinds for what is no notebook
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            print(f"error: {path} is no notebook that can be read ({reason})", file=sys.stderr)
            return 2
    return 1 if arguments.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
