"""The table of the language reward's experiment, from run folders whose contrast is known."""

import json

import language_reward
import numpy as np
import pytest

from trl_r1.evaluation import score
from trl_r1.rows import Completion, Row

ROWS = [
    *(Row(f"What is {n} + 1?", str(n + 1), "math", "en", id=f"m{n}") for n in range(12)),
    *(Row(f"{n}加一?", str(n + 1), "logic", "zh", id=f"l{n}", verifier="exact") for n in range(12)),
]


def write(folder, seed, right, in_language, rows=ROWS):
    """A run whose samples are right, and think in the question's language, with given chances."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    for when, chance, share in (("before", 0.3, 0.7), ("after", right, in_language)):
        samples = []
        for row in rows:
            texts = []
            for _ in range(8):
                language = row.language if generator.random() < share else {"en": "zh", "zh": "en"}[row.language]
                thought = {"en": "one more", "zh": "加一"}[language]
                answer = row.reference if generator.random() < chance else "-1"
                texts.append(Completion(f"<think>{thought}</think> <answer>{answer}</answer>", (1,)))
            samples.append(texts)
        (folder / f"heldout_{when}.json").write_text(json.dumps(score(rows, samples).asdict()))
    (folder / "report.json").write_text(json.dumps({"seed": seed}))
    return folder


def test_contrast_is_found(tmp_path, capsys):
    on = [write(tmp_path / f"on{seed}", seed, 0.70, 0.98) for seed in range(3)]
    off = [write(tmp_path / f"off{seed}", seed, 0.75, 0.70) for seed in range(3)]
    language_reward.main(
        ["--with", *map(str, on), "--without", *map(str, off), "--output", str(tmp_path / "table.json")]
    )
    table = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "table.json").read_text()) == table
    assert (table["seeds"], table["questions"], table["samples"]) == ([0, 1, 2], 24, 8)
    value, low, high = table["contrast"]["all"]["language_share"]
    assert low < 0.28 < high
    assert low > 0.15
    assert value == pytest.approx(
        table["with"]["all"]["language_share_after"][0] - table["without"]["all"]["language_share_after"][0], abs=2e-4
    )
    assert table["contrast"]["all"]["accuracy"][0] < 0
    for domain in ("math", "logic"):
        assert table["with"][f"domain {domain}"]["accuracy_change"][1] > 0
        assert table["with"][f"domain {domain}"]["questions"] == 12
    assert table["with"]["language zh"]["worded_after"] == 1.0


def test_runs_that_cannot_be_paired_are_refused(tmp_path):
    first, second = write(tmp_path / "a", 0, 0.5, 0.5), write(tmp_path / "b", 1, 0.5, 0.5)
    with pytest.raises(SystemExit, match="Seeds"):
        language_reward.compare([first], [second])
    other = write(tmp_path / "c", 0, 0.5, 0.5, ROWS[1:])
    with pytest.raises(SystemExit, match="same held-out questions"):
        language_reward.compare([first], [other])
