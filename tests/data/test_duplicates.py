"""Near-duplicates are found, questions with other numbers are kept apart, and the first of a set stays."""

import numpy as np
import pytest

from trl_r1.data import duplicates as module
from trl_r1.data.duplicates import MinHash, deduplicate, find_duplicates, signatures, text_signatures
from trl_r1.data.shingles import clean, ngrams, tokenize
from trl_r1.exceptions import ConfigurationError

RNG = np.random.default_rng(0)
WORDS = np.array([f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "r", "st", "x")])


def text(count=200):
    return " ".join(RNG.choice(WORDS, count))


def changed(original, count):
    pieces = original.split()
    for place in RNG.choice(len(pieces), count, replace=False):
        pieces[place] = "zzz"
    return " ".join(pieces)


def jaccard(left, right, n=5):
    sets = [set(ngrams(tokenize([clean(one)]), n)[0].tolist()) for one in (left, right)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_estimate_is_the_jaccard_similarity():
    settings = MinHash(hashes=1024)
    for count in (1, 4, 10, 25):
        left = text()
        right = changed(left, count)
        one, other = text_signatures([left, right], settings)
        assert (one == other).mean() == pytest.approx(jaccard(left, right), abs=0.06)


def test_pairs_above_the_threshold_are_found_and_others_kept():
    originals = [text() for _ in range(300)]
    near = [changed(one, 1) for one in originals]  # similarity about 0.95
    far = [changed(one, 30) for one in originals]  # about 0.35
    found = deduplicate(originals + near + far)
    assert found.kept[:300].all()
    assert (found.original[300:600] == np.arange(300)).mean() > 0.99
    assert found.kept[600:].all()


def test_bands_fit_the_threshold():
    settings = MinHash(0.8)
    assert (settings.bands, settings.rows_per_band) == (16, 8)
    assert settings.meets(0.8) > 0.9
    assert settings.meets(0.4) < 0.02
    assert MinHash(0.5).rows_per_band < MinHash(0.95).rows_per_band


def test_other_numbers_and_operators_are_other_questions():
    asked = (
        "Tom has {} apples and buys {} more at the market near the river, and then he eats {} of them on the way home."
    )
    questions = [
        asked.format(3, 5, 2),
        asked.format(3, 5, 4),
        asked.format(3, 5, 2).upper(),
        "What is 3 + 5?",
        "What is 3 - 5?",
    ]
    assert deduplicate(questions).kept.tolist() == [True, True, False, True, True]
    # The rule is what keeps the second: without it, it goes.
    assert not deduplicate(questions, settings=MinHash(0.7, other_numbers=False)).kept[4]


def test_first_of_a_chain_is_named_and_ineligible_rows_take_no_part():
    first = text()
    found = deduplicate([text(), first, changed(first, 1), first, text()])
    assert found.original.tolist() == [0, 1, 1, 1, 4]
    signed = text_signatures([first, first, first], MinHash())
    eligible = np.array([False, True, True])
    assert find_duplicates(signed, MinHash(), eligible=eligible).original.tolist() == [0, 1, 1]


def test_a_bucket_that_is_too_full_is_counted(monkeypatch):
    monkeypatch.setattr(module, "_MAX_ROUNDS", 2)
    signed = np.zeros((6, 128), np.uint32)
    signed[:, 8:] = np.arange(6)[:, None]  # one band in common, the rest different
    assert find_duplicates(signed, MinHash()).unfinished == 4


def test_memory_mapped_signatures_give_the_same(tmp_path):
    texts = [text(30) for _ in range(50)]
    texts += [changed(one, 1) for one in texts]
    signed = text_signatures(texts, MinHash())
    np.save(tmp_path / "signatures.npy", signed)
    mapped = np.load(tmp_path / "signatures.npy", mmap_mode="r")
    assert (find_duplicates(mapped, MinHash()).original == find_duplicates(signed, MinHash()).original).all()


def test_short_and_empty_texts():
    assert deduplicate(["yes", "no", "yes", "Yes!"]).kept.tolist() == [True, True, False, False]
    assert signatures(tokenize(["", "a"]), MinHash()).shape == (2, 128)
    assert deduplicate([]).kept.tolist() == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"threshold": 0.1}, "0.3"), ({"shingle": 0}, "at least 1"), ({"hashes": 100}, "power of two")],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        MinHash(**settings)
