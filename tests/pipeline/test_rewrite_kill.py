"""`kill -9` while a cold start's traces are rewritten: what lies in whole shards is not asked for again."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from killing import kill_when

from trl_r1.data.cold_start_rows import read_rows
from trl_r1.generation.shards import SampleStore
from trl_r1.pipeline.cold_start import cold_start, parse_cold_start

TRACES = 400
PROGRAM = "import sys; from trl_r1.pipeline.cold_start import run; run(sys.argv[1:])"


class _Editor(BaseHTTPRequestHandler):
    """A server that rewrites the thinking of sums, in 10 ms."""

    protocol_version = "HTTP/1.1"
    asked = 0

    def do_GET(self) -> None:
        self._answer({"data": [{"id": "editor"}]})

    def do_POST(self) -> None:
        type(self).asked += 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        a, b = map(int, re.findall(r"What is (\d+) \+ (\d+)", body["prompt"])[0])
        text = (
            f"<reasoning>\nI take {a} and add {b}. That makes {a + b}.\n</reasoning>\n"
            f"<summary>\nThe sum is \\boxed{{{a + b}}}.\n</summary>"
        )
        time.sleep(0.01)
        self._answer({"choices": [{"text": text, "finish_reason": "stop"}]})

    def _answer(self, data: Any) -> None:
        body = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Keep the tests quiet."""


@pytest.fixture
def editor() -> Iterator[str]:
    _Editor.asked = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), _Editor) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


@pytest.mark.full
def test_a_killed_rewriting_goes_on_where_it_was(tmp_path: Path, editor: str) -> None:
    traces = tmp_path / "mine.jsonl"
    rows = (
        {
            "prompt": f"What is {n} + 5?",
            "reference": str(n + 5),
            "reasoning": f"{n} + 5 = {n + 5}",
            "answer": str(n + 5),
        }
        for n in range(TRACES)
    )
    traces.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rewriter = {"server_urls": [editor], "server_concurrency": 4, "template": "base", "seed": 0}
    options = [
        "--traces", str(traces), "--filter_settings", '{"length": {"min_words": 1}}', "--rewriter", json.dumps(rewriter),
        "--output_dir", str(tmp_path / "run"),
    ]  # fmt: skip
    folder, written = tmp_path / "run" / "samples" / "rewrite", tmp_path / "run" / "cold_start.jsonl"
    kill_when(lambda: any(folder.glob("shard-*")), ["-c", PROGRAM, *options])
    assert not written.exists()
    before = {path.name: path.read_bytes() for path in folder.glob("shard-*")}
    done = len(SampleStore(folder))
    assert 256 <= done < TRACES

    _Editor.asked = 0
    report = cold_start(*parse_cold_start(options))
    assert _Editor.asked == TRACES - done
    assert report["rewritten"] == report["rows"] == TRACES
    assert all((folder / name).read_bytes() == text for name, text in before.items())
    assert all(row["rewritten"] and row["reasoning"].startswith("I take") for row in read_rows(written))
    # A third start asks for nothing, and comes to the same rows.
    rows_before = written.read_bytes()
    assert cold_start(*parse_cold_start(options)) == report
    assert written.read_bytes() == rows_before
    assert _Editor.asked == TRACES - done
