from worker_pool import measure


def test_answers_are_checked_beside_the_loop():
    row = measure(workers=2, chunk_seconds=0.02, turns=1, seconds=0.3)
    assert row["answers_per_s"] > 0
    assert 0 < row["share"] < 3
