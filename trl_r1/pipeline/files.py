"""Files that are either the old or the new version, whatever kills the process (trap 37)."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file by writing beside it and renaming.

    Args:
        path (`str` or `Path`): The file; its folder is made if needed.
        text (`str`): Its content.

    Returns:
        `Path`: The file.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.tmp")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(target)
    return target


def write_json(path: str | Path, data: Any) -> Path:
    """Write JSON atomically; NaN, which JSON does not know, becomes `null`."""
    return write_text(path, json.dumps(_without_nan(data), indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any | None:
    """Read JSON; `None` when there is no such file or it is damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _without_nan(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _without_nan(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_without_nan(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data
