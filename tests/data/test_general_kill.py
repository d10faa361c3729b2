"""`kill -9` while general rows are built: whole shards stay, the same call again builds the rest."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from test_general import Scribe, scribe, task

from trl_r1.data.general import GeneralBuilder
from trl_r1.data.general_shards import write_general

TASKS, SHARD = 60, 10
PROGRAM = """
import sys
import time
sys.path.insert(0, {here!r})
from test_general import Scribe, scribe, task
from trl_r1.data.general import GeneralBuilder
from trl_r1.data.general_shards import write_general

def slowly(request, index):
    time.sleep(0.01)
    return scribe(request, index)

write_general(GeneralBuilder(Scribe(slowly)), [task(n) for n in range({tasks})], {folder!r}, shard_tasks={shard})
"""


def test_a_killed_build_goes_on_and_comes_to_the_same(tmp_path: Path) -> None:
    folder, tasks = tmp_path / "killed", [task(number) for number in range(TASKS)]
    whole = write_general(GeneralBuilder(Scribe(scribe)), tasks, tmp_path / "whole", shard_tasks=SHARD)
    program = PROGRAM.format(here=str(Path(__file__).parent), folder=str(folder), tasks=TASKS, shard=SHARD)
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        deadline = time.monotonic() + 100
        while len(list(folder.glob("general-*.jsonl"))) < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    kept = {path.name: path.read_bytes() for path in folder.glob("general-*.jsonl")}
    assert 2 <= len(kept) < TASKS // SHARD
    assert {len(text.splitlines()) for text in kept.values()} == {SHARD}

    resumed = Scribe(scribe)
    assert write_general(GeneralBuilder(resumed), tasks, folder, shard_tasks=SHARD) == whole
    # What no whole shard holds is asked again, and nothing else.
    assert {request.key for request in resumed.asked} == {one.key for one in tasks[SHARD * len(kept) :]}
    for path in (tmp_path / "whole").iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
        assert kept.get(path.name, path.read_bytes()) == path.read_bytes()
