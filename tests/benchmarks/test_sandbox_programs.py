import pytest
from sandbox_programs import measure

from trl_r1 import sandbox


@pytest.mark.skipif(sandbox.isolation_problem() is not None, reason=str(sandbox.isolation_problem()))
def test_both_ways_give_the_same_outputs():
    plain, launched = measure(3)
    assert (plain["way"], launched["way"]) == ("bubblewrap", "launcher")
    assert plain["equal"] is launched["equal"] is True
    assert plain["programs"] == launched["programs"] == 3
    assert launched["ratio"] > 0
