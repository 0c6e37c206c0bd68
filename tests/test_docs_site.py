"""The site as it is built: whole, of its own, and readable on a phone."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from browser import MISSING, NARROW, opened
from fenced import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is in the extra evenorm[docs]"),
]

LOADED = re.compile(r"<(?:script|img|iframe)[^>]+src=\"([^\"]+)\"|<link[^>]+rel=\"(?:stylesheet|icon|preload)\"[^>]*>")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        for found in LOADED.finditer(page.read_text(encoding="utf-8")):
            assert "//" not in found[0], f"{page.name}: {found[0]}"


def test_pages_hold_what_the_generators_made(site: Path) -> None:
    layer = (site / "layers" / "GroupNorm.html").read_text(encoding="utf-8")
    assert '<svg class="block"' in layer
    assert "<math" in layer
    assert "arithmatex" not in layer
    rule = (site / "rules" / "en112.html").read_text(encoding="utf-8")
    assert "error EN112 momentum=0.99 keeps 0.01 of the past" in rule
    assert "{{" not in (site / "traps.html").read_text(encoding="utf-8")


def test_every_layer_has_formula_shape_and_source(site: Path) -> None:
    for page in (site / "layers").glob("*[!x].html"):
        text = page.read_text(encoding="utf-8")
        assert "<math" in text, page.name
        assert page.stem.endswith("_norm") or 'class="shape"' in text, page.name
        assert page.stem == "Norm" or 'class="source"' in text, page.name
        assert page.stem == "spectral_norm" or '<svg class="block"' in text, page.name


@pytest.mark.browser
@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
@pytest.mark.parametrize("page", ["index", "choosing", "comparison", "backward", "layers/BatchNorm2d"])
def test_no_page_is_wider_than_a_phone(site: Path, chromium: Any, page: str) -> None:
    with opened(chromium, site / f"{page}.html", width=NARROW) as shown:
        assert shown.overflow <= 0
