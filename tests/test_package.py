"""`import trl_r1` is cheap, and every public name resolves."""

import subprocess
import sys

import pytest

import trl_r1


def test_import_loads_neither_torch_nor_vllm():
    code = "import sys, trl_r1; print([m for m in ('torch', 'vllm', 'trl', 'transformers') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", trl_r1.__all__)
def test_public_names_resolve(name):
    assert getattr(trl_r1, name) is not None


def test_unknown_name_is_explained():
    with pytest.raises(AttributeError, match="R1GRPOTrainer"):
        trl_r1.NoSuchThing  # noqa: B018
