"""The notebooks run from top to bottom, as a reader would run them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
# Pictures of each notebook, and a text that its last cells print.
SHOWN = {
    "01_r1_zero_on_a_laptop": (1, "held-out pass@1 changed by"),
    "02_rewards_and_verifiers": (0, "[1.0, 0.0, 0.0] in time"),
    "05_read_a_run": (2, "2 pictures"),
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setitem(os.environ, "TRL_R1_NOTEBOOK_STEPS", "4")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    client = nbclient.NotebookClient(notebook, timeout=480, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    expected, last = SHOWN.get(path.stem, (len(pictures), ""))
    assert len(pictures) == expected
    text = "".join(output.get("text", "") for output in outputs)
    assert last in text
