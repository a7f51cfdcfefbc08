"""What mkdocs.yml asks of the documentation: plain roles in docstrings, links between notebooks."""

import re
from typing import Any

from griffe import Extension, Object


class Roles(Extension):
    """Docstrings of the API pages: Sphinx's ``:func:`match``` is code, ``>>>`` and ``::`` begin literal blocks."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", obj.docstring.value)
            text = re.sub(r"(?m)^(>>> .*?)(?: +# doctest:.*)?$", r"    \1", text)
            obj.docstring.value = re.sub(r"(?m)^(.*)::$", lambda line: line[1] and line[1] + ":", text)


def on_page_content(html: str, **_: Any) -> str:
    """Notebooks link to each other as files; on the site they are pages."""
    return re.sub(r'(href="[\w/]+)\.ipynb"', r'\1.html"', html)
