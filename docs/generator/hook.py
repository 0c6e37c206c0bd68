"""Events of mkdocs: the pages that are made, what is put into the others, and the formulas."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

_ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(_ROOT / "docs"))

from evenorm.doctor import documentation  # noqa: E402
from generator import commands, comparison, examples, formulas, layers, macros, names, performance  # noqa: E402


def made() -> dict[str, str]:
    """Markdown of all pages that nobody writes, by file name."""
    return {
        **layers.pages(),
        **{f"rules/{name}": text for name, text in documentation.pages().items()},
        "reference/command.md": commands.page(),
        "performance.md": performance.page(_ROOT / "benchmarks"),
        "comparison.md": comparison.page(_ROOT / "docs" / "comparison.toml"),
        "examples.md": examples.page(_ROOT / "examples"),
    }


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made, and look for names that are on none."""
    pages = made()
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    written = [file.content_string for file in files.documentation_pages() if file.src_uri not in pages]
    faults = names.faults([*pages.values(), *written])
    if faults:
        raise PluginError("; ".join(faults))
    for entry in config.nav or []:
        for title, below in entry.items():
            if title in ("Layers", "Rules"):
                folder = title.lower()
                below += sorted(
                    name for name in pages if name.startswith(f"{folder}/") and not name.endswith("index.md")
                )
    return files


def on_page_markdown(markdown: str, **given: Any) -> str:
    """Put in figures and pictures."""
    return macros.filled(markdown)


def on_page_content(html: str, **given: Any) -> str:
    """Draw the formulas."""
    return formulas.drawn(html)
