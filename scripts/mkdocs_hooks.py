"""What mkdocs.yml asks of the documentation: plain roles in docstrings, the notebooks and links between them."""

import re
from pathlib import Path
from typing import Any

from griffe import Extension, Object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files


class Roles(Extension):
    """Docstrings of the API pages: Sphinx's ``:func:`match``` is code, ``>>>`` and ``::`` begin literal blocks."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", obj.docstring.value)
            text = re.sub(r"(?m)^(>>> .*?)(?: +# doctest:.*)?$", r"    \1", text)
            obj.docstring.value = re.sub(r"(?m)^(.*)::$", lambda line: line[1] and line[1] + ":", text)


@event_priority(100)  # before mkdocs-jupyter, which looks for notebooks
def on_files(files: Files, *, config: MkDocsConfig) -> None:
    """The folder ``notebooks`` as if it were in ``docs``."""
    root = Path(config.config_file_path).parent
    for path in root.glob("notebooks/*.ipynb"):
        name = path.relative_to(root).as_posix()
        files.append(File(name, str(root), config.site_dir, config.use_directory_urls))


def on_page_content(html: str, **_: Any) -> str:
    """Notebooks link to each other as files; on the site they are pages."""
    return re.sub(r'(href="[\w/]+)\.ipynb"', r'\1.html"', html)
