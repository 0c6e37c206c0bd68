"""The command `evenorm explorer`: a page written, and an exit code."""

from __future__ import annotations

import sys
import webbrowser
from pathlib import Path

from evenorm.lab.explorer.page import write

__all__ = ["run"]

WRONG_ARGUMENTS = 2


def run(output: Path, show: bool) -> int:
    """Write the page, or say on the error stream why it cannot be written."""
    if output.is_dir() or not output.absolute().parent.is_dir():
        sys.stderr.write(f"evenorm explorer: --output {output}: expected a file in a folder that exists.\n")
        return WRONG_ARGUMENTS
    try:
        write(output)
    except OSError as fault:
        sys.stderr.write(f"evenorm explorer: --output {output}: {fault.strerror}.\n")
        return WRONG_ARGUMENTS
    sys.stdout.write(f"{output}\n")
    if show:
        webbrowser.open(output.absolute().as_uri())
    return 0
