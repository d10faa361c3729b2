"""Where a model comes from: its parent, named by hash, and the stage that made it (trap 34)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trl_r1.exceptions import ConfigurationError
from trl_r1.pipeline.files import read_json

BASE = "base"
REPORT_FILE = "report.json"
# What decides what a model writes.
_HASHED = ("*.safetensors", "*.bin", "config.json", "tokenizer.json", "adapter_config.json")
_BLOCK = 1 << 22


def model_hash(model: str, revision: str | None = None) -> str:
    """Return a hash of a model: of the files of a folder, or the commit of a Hub id.

    Args:
        model (`str`): Folder or Hub id.
        revision (`str`, *optional*): Of a Hub id.

    Returns:
        `str`: `"sha256:…"`, or `"commit:…"` of the files in the local cache; `"unknown"` where there are none.
    """
    folder = Path(model)
    if folder.is_dir():
        digest = hashlib.sha256()
        for path in sorted({path for pattern in _HASHED for path in folder.glob(pattern)}):
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            _digest_file(path, digest)
        return f"sha256:{digest.hexdigest()}"
    from transformers import AutoConfig

    commit = getattr(AutoConfig.from_pretrained(model, revision=revision), "_commit_hash", None)
    return f"commit:{commit}" if commit else "unknown"


def file_hash(path: str | Path) -> str | None:
    """Return the SHA-256 of a file, or of the files of a folder; `None` for anything else, such as a Hub id."""
    target = Path(path)
    paths = [target] if target.is_file() else sorted(one for one in target.rglob("*") if one.is_file())
    if not paths:
        return None
    digest = hashlib.sha256()
    for one in paths:
        _digest_file(one, digest)
    return f"sha256:{digest.hexdigest()}"


def rows_hash(rows: Iterable[Any]) -> str:
    """Return a hash of rows, for data that is no file here."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return f"rows-sha256:{digest.hexdigest()}"


def lineage(model: str, name: str | None = None, revision: str | None = None) -> dict[str, Any]:
    """Describe the model a stage starts from.

    Args:
        model (`str`): Folder or Hub id.
        name (`str`, *optional*): What the user called it, such as `nano`.
        revision (`str`, *optional*): Of a Hub id.

    Returns:
        `dict`: `model`, `hash`, `stage` (the stage that made it; `"base"` for a model that none of ours made) and `parents`
        (those it comes from itself, oldest first).
    """
    report = read_json(Path(model) / REPORT_FILE) if Path(model).is_dir() else None
    earlier = report.get("parent") if isinstance(report, dict) else None
    parents = [*earlier.get("parents", []), {k: earlier[k] for k in ("model", "hash", "stage")}] if earlier else []
    stage = str(report.get("stage", BASE)) if isinstance(report, dict) else BASE
    return {"model": name or model, "hash": model_hash(model, revision), "stage": stage, "parents": parents}


def check_parent(parent: dict[str, Any], expected: str) -> None:
    """Refuse to start from a model that another stage made than the one expected.

    Args:
        parent (`dict`): From [`lineage`].
        expected (`str`): `"base"`, `"any"`, or the name of a stage.

    Raises:
        [`ConfigurationError`]: Saying what R1 does.
    """
    if expected in ("any", parent["stage"]):
        return
    raise ConfigurationError(
        f"{parent['model']!r} was made by the stage {parent['stage']!r}, but parent_stage={expected!r}. R1 starts both of its "
        "SFT stages from the base model, not from the model before (v1 §2.3.1, §2.3.3). Name the base, or set parent_stage: "
        "any."
    )


def _digest_file(path: Path, digest: Any) -> None:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
