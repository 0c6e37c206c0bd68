"""The explorer's page: one file, its manners in a browser, what a person does with it."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from browser import MISSING, NARROW, WIDE, Opened, opened, violations
from evenorm import Pattern, PatternError
from evenorm.cli import app
from evenorm.lab.explorer.page import page, write

IN_A_BROWSER = [pytest.mark.browser, pytest.mark.skipif(MISSING is not None, reason=str(MISSING))]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("explorer") / "explorer.html"
    write(path)
    return path


def test_one_file_without_addresses() -> None:
    text = page()
    assert "default-src 'none'" in text
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text.replace("%3A", ":").replace("%2F", "/"))
    assert len(text) < 250_000


def test_command_writes_the_page_or_says_why_not(tmp_path: Path) -> None:
    target = tmp_path / "explorer.html"
    found = CliRunner().invoke(app, ["explorer", "--output", str(target)])
    assert (found.exit_code, found.stdout) == (0, f"{target}\n")
    assert target.read_text(encoding="utf-8") == page()
    for wrong in (tmp_path, tmp_path / "none" / "explorer.html"):
        refused = CliRunner().invoke(app, ["explorer", "--output", str(wrong)])
        assert refused.exit_code == 2
        assert f"--output {wrong}: expected a file in a folder that exists" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["explorer.html"]


def test_modules_are_short_and_all_are_used() -> None:
    folder = files("evenorm.lab.explorer")
    modules = {
        f.name.removesuffix(".js"): f.read_text(encoding="utf-8") for f in folder.iterdir() if f.name[-3:] == ".js"
    }
    assert max(len(source.splitlines()) for source in modules.values()) < 400
    imported = {name for source in modules.values() for name in re.findall(r'from "explorer/(\w+)"', source)}
    assert imported == modules.keys() - {"explorer"}


def drawn(shown: Opened, selector: str) -> str:
    return str(shown.page.inner_text(selector))


def turn_to(shown: Opened, fragment: str) -> None:
    """Another view of the page that is open."""
    shown.page.evaluate(
        """(fragment) => new Promise((done) => {
            const changes = location.hash.slice(1) !== fragment;
            location.hash = fragment;
            if (changes) addEventListener("hashchange", () => requestAnimationFrame(done), { once: true });
            else done();
        })""",
        fragment,
    )


# Each normalizer where it shows something of its own; a fault; a batch of one; nothing to tell apart.
VIEWS = [
    *("", "norm=ghost&shape=5,4,2,2&mode=eval", "norm=layer&show=y", "norm=rms&show=x", "norm=group"),
    *("norm=instance", "norm=qk", "norm=layer2d&shift=3", "pattern=n+(c+[h]", "shape=1,6&momentum=none"),
    *("norm=free&pattern=[...]&affine=&history=&shape=5", "spread=0&eps=0&shift=1", "shape=16,3,4,4&updates=60&show=y"),
]
AUDITED = ("", "pattern=n+(c+[h]")


class TestPage:
    pytestmark = IN_A_BROWSER

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("width", [WIDE, NARROW])
    def test_manners(self, chromium: Any, file: Path, width: int, scheme: Any) -> None:
        with opened(chromium, file, width=width, scheme=scheme) as shown:
            # Dark differs from light in its colors alone.
            for view in VIEWS if scheme == "light" else AUDITED:
                turn_to(shown, view)
                shown.page.evaluate("for (const group of document.querySelectorAll('details')) group.open = true")
                assert shown.overflow <= 0, view
                assert drawn(shown, "#code").startswith("layer = evenorm."), view
                if view in AUDITED:
                    assert violations(shown.page) == [], view
                assert shown.complaints == [], view
            assert shown.left == []

    def test_bad_manners_are_found(self, chromium: Any, tmp_path: Path) -> None:
        page = tmp_path / "bad.html"
        page.write_text(
            "<img src='http://127.0.0.1:9/x.png'><p style='width:2000px;color:#eee'>a</p><script>no()</script>"
        )
        with opened(chromium, page) as shown:
            assert shown.overflow > 0
            assert shown.left == ["http://127.0.0.1:9/x.png"]
            assert any("no is not defined" in line for line in shown.complaints)
            assert any(line.startswith("image-alt") for line in violations(shown.page))

    def test_keyboard_follows_an_element_and_the_address_keeps_it(self, chromium: Any, file: Path) -> None:
        with opened(chromium, file) as shown:
            assert drawn(shown, "#group").startswith("n 0, c 1, h 0, w 0 is in group B. With 23 other")
            shown.page.focus("td[tabindex='0']")
            for key in ("ArrowDown", "PageDown", "ArrowRight", "End"):
                shown.page.keyboard.press(key)
            assert drawn(shown, "#group").startswith("n 1, c 2, h 1, w 2 is in group C.")
            assert shown.page.evaluate("document.activeElement.getAttribute('aria-label')").startswith(
                "n 1, c 2, h 1, w 2: x"
            )
            shown.page.wait_for_url("**at=1%2C2%2C1%2C2*")
            address = shown.page.url
        with opened(chromium, file, fragment=address.partition("#")[2]) as again:
            assert drawn(again, "#group").startswith("n 1, c 2, h 1, w 2 is in group C.")

    def test_pointing_shows_a_group(self, chromium: Any, file: Path) -> None:
        with opened(chromium, file) as shown:
            shown.page.hover("#block polygon.front[data-element='12']")
            assert drawn(shown, "#group").startswith("n 0, c 2, h 0, w 0 is in group C.")
            sharing = shown.page.locator("#cells td.shares").all_inner_texts()
            assert sharing == ["C"] * 24
            shown.page.click("#cells td[data-element='143']")
            assert drawn(shown, "#steps caption").startswith("Group F, m = 24")

    def test_a_fault_is_python_s(self, chromium: Any, file: Path) -> None:
        with opened(chromium, file) as shown:
            for text in (
                "[n] c (",
                "[n] c [n]",
                "[n] c ( )",
                "n [c=0]",
                "[n] c )",
                "n [(c)]",
                "[n] c h w d",
                "n ([c] d)",
            ):
                shown.page.fill("#pattern", text)
                with pytest.raises(PatternError) as caught:
                    Pattern.parse(text).bind((4, 6, 2, 3))
                assert drawn(shown, "#fault") == str(caught.value)
                assert shown.page.get_attribute("#pattern", "aria-invalid") == "true"
                assert shown.page.is_visible("#stale")
            shown.page.fill("#pattern", "n [c] [h w]")
            assert drawn(shown, "#fault") == ""
            assert drawn(shown, "#sentence span:first-child") == "n [c h w]"

    def test_both_conventions_of_momentum(self, chromium: Any, file: Path) -> None:
        with opened(chromium, file) as shown:
            shown.page.fill("#decay", "0.99")
            assert shown.page.input_value("[name=momentum]") == "0.01"
            shown.page.fill("[name=momentum]", "0.25")
            assert shown.page.input_value("#decay") == "0.75"
            assert "running average (momentum 0.25)" in drawn(shown, "#sentence")
            assert "momentum=0.25" in drawn(shown, "#code")
            shown.page.check("#cumulative")
            assert "momentum=None" in drawn(shown, "#code")

    def test_batchmates(self, chromium: Any, file: Path) -> None:
        nothing = "Nothing changes, to the last bit"
        views = {"norm=batch": True, "norm=batch&mode=eval": False, "norm=layer": False, "norm=group": False}
        with opened(chromium, file) as shown:
            for view, changes in views.items():
                turn_to(shown, f"{view}&shift=2")
                assert drawn(shown, "#mates-said").startswith(nothing) is not changes, view

    def test_gamma_and_beta_undo_the_normalization(self, chromium: Any, file: Path) -> None:
        with opened(chromium, file, fragment="show=y") as shown:
            cells = "#cells td"
            normalized = shown.page.locator(cells).all_inner_texts()
            shown.page.click("#undo")
            undone = shown.page.locator(cells).all_inner_texts()
            shown.page.check("input[name=show][value=x]")
            assert undone == shown.page.locator(cells).all_inner_texts() != normalized
            shown.page.check("input[name=norm][value=layer2d]", force=True)
            assert shown.page.is_disabled("#undo")

    def test_theme_is_chosen_and_kept(self, chromium: Any, file: Path) -> None:
        with opened(chromium, file, scheme="dark") as shown:
            background = "getComputedStyle(document.body).backgroundColor"
            dark = shown.page.evaluate(background)
            shown.page.select_option("#theme", "light")
            assert shown.page.evaluate(background) != dark
            shown.page.reload()
            assert shown.page.input_value("#theme") == "light"
            shown.page.emulate_media(media="print")
            assert not shown.page.is_visible("#controls")

    def test_addresses_of_any_kind_open(self, chromium: Any, file: Path) -> None:
        wild = (
            "norm=none&shape=0,-1",
            "shape=99,99",
            "momentum=7&eps=x&at=99,99,99,99",
            "weight=1,a",
            "%%%",
            "norm=group&shape=4,5,2,2",
        )
        with opened(chromium, file) as shown:
            for fragment in wild:
                turn_to(shown, fragment)
                assert drawn(shown, "#code").startswith("layer = evenorm."), fragment
                assert shown.complaints == [], fragment
        with opened(chromium, file, fragment=wild[-1]) as shown:
            assert "2 does not divide the axis of 5" in drawn(shown, "#fault")
            assert shown.complaints == []
