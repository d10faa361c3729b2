"""Files are whole or absent, and JSON is what other programs can read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from trl_r1.pipeline.files import read_json, write_json, write_text


def test_old_content_stays_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = write_text(tmp_path / "deep" / "report.json", "old")

    def killed(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        write_text(target, "new, and half")
    assert target.read_text() == "old"


def test_nan_becomes_null(tmp_path: Path) -> None:
    path = write_json(tmp_path / "x.json", {"a": float("nan"), 2: [float("inf"), 0.5], "c": (1, "中")})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {"a": None, "2": [None, 0.5], "c": [1, "中"]}


def test_damaged_file_is_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / "half.json").write_text('{"a": 1')
    assert read_json(tmp_path / "half.json") is None
    assert read_json(tmp_path / "absent.json") is None
