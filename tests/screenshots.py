"""Pictures of pages for people to look at: a laptop's and a phone's width, light and dark.

python tests/screenshots.py build/screenshots page.html [page.html …]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from browser import MISSING, NARROW, WIDE, browser, opened

SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


def main(folder: Path, pages: list[Path]) -> int:
    """Write four pictures of each page."""
    if MISSING is not None:
        sys.stderr.write(f"screenshots: {MISSING}\n")
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    with browser() as chromium:
        for page in pages:
            for width in (WIDE, NARROW):
                for scheme in SCHEMES:
                    picture = folder / f"{page.stem}-{width}-{scheme}.png"
                    with opened(chromium, page, width=width, scheme=scheme) as shown:
                        shown.read()
                        shown.page.screenshot(path=picture, full_page=True)
                    sys.stdout.write(f"{picture}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]))
