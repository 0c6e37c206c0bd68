"""The explorer's page: its style and its modules put into one file that loads nothing."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

__all__ = ["page", "write"]


def page() -> str:
    """Return the whole page.

    Modules stay modules: the page's import map gives each as a ``data:`` address under its name.

    >>> "explorer/pattern" in page()
    True
    """
    here = files(__package__)
    sources = sorted((file for file in here.iterdir() if file.name.endswith(".js")), key=lambda file: file.name)
    modules = {
        f"explorer/{file.name.removesuffix('.js')}": "data:text/javascript;charset=utf-8,"
        + quote(file.read_text(encoding="utf-8"), safe=" !'()*,-./:;=?@[]_~$&+{}|`^")
        for file in sources
    }
    template = here.joinpath("explorer.html").read_text(encoding="utf-8")
    style = here.joinpath("explorer.css").read_text(encoding="utf-8")
    return template.replace("/*{style}*/", style).replace("{modules}", json.dumps({"imports": modules}))


def write(output: Path) -> None:
    """Write the page.

    Raises:
        OSError: there is no such folder, or it cannot be written to.
    """
    # Written beside and moved: a file of that name is always a whole page.
    draft = output.with_name(output.name + ".part")
    draft.write_text(page(), encoding="utf-8")
    draft.replace(output)
