"""The notebooks run from top to bottom, as a reader would run them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
# Pictures of each notebook, and texts that its cells print; a notebook without an entry fails.
SHOWN: dict[str, tuple[int, list[str]]] = {
    "01_r1_zero_on_a_laptop": (1, ["held-out pass@1 changed by"]),
    "02_rewards_and_verifiers": (0, ["[1.0, 0.0, 0.0] in time"]),
    "03_rejection_sampling": (1, ["  kept  ", "epoch 1: candidates", "held-out pass@1 changed by"]),
    "04_distillation": (1, ["held-out pass@1 changed by", "tries per answer", "of held-out questions dropped"]),
    "05_read_a_run": (2, ["2 pictures"]),
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setitem(os.environ, "TRL_R1_NOTEBOOK_STEPS", "4")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    client = nbclient.NotebookClient(notebook, timeout=480, resources={"metadata": {"path": str(tmp_path)}})
    try:
        client.execute()
    except nbclient.exceptions.CellExecutionError as error:
        # Its own text begins with the cell and all it printed; what it died of is at the end.
        pytest.fail(f"{error.ename}: {error.evalue}\n{str(error)[-4000:]}")
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    expected, texts = SHOWN[path.stem]
    assert len(pictures) == expected
    text = "".join(output.get("text", "") for output in outputs)
    assert [shown for shown in texts if shown not in text] == []
