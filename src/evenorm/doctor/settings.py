"""Settings of a project: the table ``tool.evenorm.examine`` of its pyproject.toml."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """What a project has decided.

    ``ignore-paths`` maps patterns of module paths to the codes that are ignored there.
    """

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    ignore_paths: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    intent: str = "train"
    causal: bool = False
    batch_size: int | None = None

    @staticmethod
    def near(folder: Path) -> Settings:
        """The settings of the nearest pyproject.toml at or above a folder.

        Raises:
            ValueError: an unknown setting, or a file that cannot be read.
        """
        for place in (folder, *folder.parents):
            if (file := place / "pyproject.toml").is_file():
                return Settings.of(_read(file).get("tool", {}).get("evenorm", {}).get("examine", {}), str(file))
        return Settings()

    @staticmethod
    def of(table: Mapping[str, Any], source: str) -> Settings:
        """Read a table; names have hyphens, as TOML's do."""
        known = {f.name.replace("_", "-"): f.name for f in fields(Settings)}
        unknown = sorted(set(table) - set(known))
        if unknown:
            raise ValueError(f"{source}: tool.evenorm.examine has no {', '.join(unknown)}; it has {', '.join(known)}")
        values: dict[str, Any] = {known[k]: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
        paths: Mapping[str, list[str]] = values.pop("ignore_paths", {})
        return Settings(**values, ignore_paths={path: tuple(codes) for path, codes in paths.items()})


def _read(file: Path) -> dict[str, Any]:
    if sys.version_info < (3, 11):
        import tomli as tomllib
    else:
        import tomllib

    try:
        return tomllib.loads(file.read_text())
    except (OSError, ValueError) as failure:
        raise ValueError(f"{file}: {failure}") from None
