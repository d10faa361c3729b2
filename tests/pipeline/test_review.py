"""`trl-r1 review`: a person's decisions in a real browser, written back whole; nobody else gets in."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import Browser, chromium

from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.pipeline.review import ReviewFile, ReviewServer
from trl_r1.prompts import r1_completion

EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


def row(number: int, **changes: Any) -> dict[str, Any]:
    """A row with the right answer in R1's form; the line separator is one that JSON leaves as it is."""
    reasoning, summary = f"I add them: {number} + 1 = {number + 1}.\u2028Yes.", f"It is \\boxed{{{number + 1}}}."
    return {
        "prompt": f"What is {number} + 1?", "reference": str(number + 1), "domain": "math", "language": "en",
        "id": f"q{number}", "verifier": None, "trace_id": f"q{number}#traces/0", "reasoning": reasoning,
        "summary": summary, "answer": str(number + 1), "completion": r1_completion(reasoning, "", summary),
        "source": "traces", "model": "", "group": None, "verdict": {"correct": True, "detail": "same"},
        "rewritten": False, "original": None, "license": "kept as it is",
    } | changes  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ReviewServer]:
    """A server of five rows: an ordinary one, one with hostile text, one rewritten by a model, two more."""
    original = {"reasoning": "首先 we add", "summary": "4", "answer": "4", "completion": "<think>首先 we add</think>4"}
    rows = [row(1), row(2, prompt=EVIL), row(3, rewritten=True, original=original, source="direct"), row(4), row(5)]
    with ReviewServer(ReviewFile(write(tmp_path / "rows.jsonl", rows))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: ReviewServer, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    data = None if body is None else json.dumps(body)
    connection.request("GET" if body is None else "POST", path, data, {"X-Token": server.token, **headers})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, json.loads(text) if answer.headers["Content-Type"] == "application/json" else text


@pytest.mark.skipif(chromium() is None, reason="no Chromium here: apt-get install chromium")
def test_a_person_keeps_drops_and_edits_in_a_browser(served: ReviewServer, tmp_path: Path) -> None:
    path = served.file.path
    browser = Browser(tmp_path / "profile")
    try:
        browser.open(served.address)
        browser.until("document.querySelector('main .card')")
        assert "What is 1 + 1?" in browser.text("main")
        assert "✓ right" in browser.text(".chips")
        assert browser.run("location.href") == f"http://127.0.0.1:{served.server_port}/"  # no token left to copy

        browser.press("k")  # keep, go on to the hostile one
        browser.until("document.querySelector('main').innerText.includes('onerror')")
        assert browser.run("document.title") == "review · rows.jsonl"
        assert browser.run("document.querySelectorAll('main img, main script, nav img').length") == 0
        browser.press("d")
        browser.until("document.querySelector('main').innerText.includes('What is 3 + 1?')")
        assert [one["review"]["status"] for one in read(path)] == ["keep", "drop", "pending", "pending", "pending"]
        browser.press("u")  # back to the hostile one, undecided
        browser.until("document.querySelector('main').innerText.includes('onerror')")
        assert read(path)[1]["review"]["status"] == "pending"

        browser.press("ArrowRight")
        browser.until("document.querySelector('main').innerText.includes('What is 3 + 1?')")
        assert "首先" not in browser.text("main")
        browser.press("o")  # the original beside it
        browser.until("document.querySelector('main').innerText.includes('首先 we add')")

        browser.click("#edit")
        browser.until("document.querySelector('#summary-edit')")
        browser.press("k")  # a letter in a field, not a decision
        assert str(browser.run("document.querySelector('#thinking-edit').value")).startswith("kI add")
        browser.fill("#thinking-edit", "3 and one more.")
        browser.fill("#summary-edit", "So it is \\boxed{5}.")
        browser.press("Enter", control=True)
        browser.until("document.querySelector('.chips')?.innerText.includes('wrong')")  # verified again
        saved = read(path)[2]
        assert saved["completion"] == "<think>\n3 and one more.\n</think>\n\nSo it is \\boxed{5}."
        assert saved["answer"] == "5"
        assert saved["verdict"]["correct"] is False
        assert saved["original"]["reasoning"] == "首先 we add"  # what the model made it from
        assert saved["license"] == "kept as it is"

        browser.press("e")
        browser.until("document.querySelector('#summary-edit')")
        browser.fill("#summary-edit", "  ")
        browser.fill("#thinking-edit", " ")
        browser.click("#save")
        browser.until("document.querySelector('.saved.bad')")  # refused, still in the editor
        assert "empty" in browser.text("#saved")
        browser.click("#restore")
        browser.until("document.querySelector('.chips')?.innerText.includes('✓ right')")
        assert read(path)[2] == {**row(3), "source": "direct", "rewritten": True, "original": saved["original"],
                                 "verdict": read(path)[2]["verdict"],
                                 "review": {"status": "pending", "edited": False, "note": ""}}  # fmt: skip

        browser.press("/")
        browser.call("Input.insertText", text="4 + 1")
        browser.until("document.querySelectorAll('#list button').length === 1")
        browser.click("#list button")
        browser.until("document.querySelector('main').innerText.includes('What is 4 + 1?')")
        browser.click("#drop")
        browser.until("document.querySelector('#counts').innerText.includes('1 dropped')")
        assert "1 kept · 1 dropped · 3 to do" in browser.text("#counts")
        browser.screenshot(tmp_path / "review.png")
        asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
        assert {url.split("/")[2] for url in asked} == {f"127.0.0.1:{served.server_port}"}  # works offline
        broken = [e for e in browser.events if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
        assert [e for e in broken if "400" not in str(e)] == []
    finally:
        browser.close()


def test_only_who_has_the_token_gets_in(served: ReviewServer) -> None:
    assert served.server_address[0] == "127.0.0.1"
    assert ask(served, "/api/rows")[0] == 200
    assert ask(served, "/api/rows", **{"X-Token": ""})[0] == 403
    assert ask(served, "/?token=wrong", **{"X-Token": ""})[0] == 403
    # A name that some site lets point to this machine.
    assert ask(served, "/api/rows", Host=f"evil.example:{served.server_port}")[0] == 403
    assert ask(served, "/api/row/0", {"status": "keep"}, **{"X-Token": "wrong"})[0] == 403
    # The token in the address alone must not decide: another page could send it nowhere, but a leaked link could be clicked.
    assert ask(served, f"/api/row/0?token={served.token}", {"status": "keep"}, **{"X-Token": ""})[0] == 403
    assert all("review" not in one for one in read(served.file.path))


@pytest.mark.parametrize(
    "path", ["/../rows.jsonl", "/rows.jsonl", "//etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/api/row/9", "/api/row/-1",
             "/api/row/../../etc/passwd", "/api/row/٣", "/review.py"],
)  # fmt: skip
def test_nothing_but_the_page_and_the_rows_is_served(served: ReviewServer, path: str) -> None:
    from urllib.parse import quote

    status, answer = ask(served, quote(path, safe="/%"))
    assert status == 404
    assert answer == {"error": "There is nothing here."}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "maybe"}, "Allowed: pending, keep, drop"),
        ({"edit": {"reasoning": "x"}}, "needs `reasoning`, `summary` and `answer`"),
        ({"edit": {"reasoning": "x </think> y", "summary": "\\boxed{2}", "answer": ""}}, "holds </think>"),
        (["keep"], "JSON object"),
    ],
)
def test_a_change_that_makes_no_row_is_refused(served: ReviewServer, change: Any, message: str) -> None:
    before = served.file.path.read_bytes()
    status, answer = ask(served, "/api/row/0", change)
    assert status == 400
    assert message in answer["error"]
    assert served.file.path.read_bytes() == before


def test_an_answer_in_tags_is_edited_in_its_own_form(tmp_path: Path) -> None:
    text = "<think> 1 + 1 = 2 </think> <answer> 2 </answer>"
    file = ReviewFile(write(tmp_path / "zero.jsonl", [{"prompt": "1 + 1?", "reference": "2", "completion": text}]))
    file.change(0, {"edit": {"reasoning": "one and one", "summary": "ignored", "answer": "3"}})
    (saved,) = read(file.path)
    assert saved["completion"] == "<think> one and one </think> <answer> 3 </answer>"
    assert saved["verdict"]["correct"] is False
    file.change(
        0, {"edit": {"reasoning": "one and one", "summary": "", "answer": "2"}, "status": "keep", "note": "mine"}
    )
    (saved,) = read(file.path)
    assert saved["verdict"]["correct"] is True
    assert saved["review"]["note"] == "mine"
    assert saved["original"]["completion"] == text


def test_another_programs_changes_are_not_written_over(served: ReviewServer) -> None:
    rows = read(served.file.path)
    write(served.file.path, rows[:2])
    status, answer = ask(served, "/api/row/0", {"status": "keep"})
    assert status == 409
    assert "another program" in answer["error"]
    assert read(served.file.path) == rows[:2]


def test_files_that_cannot_be_reviewed_are_named(tmp_path: Path) -> None:
    for name in ("missing.jsonl", "folder.jsonl", "rows.txt"):
        path = tmp_path / name
        if name == "folder.jsonl":
            path.mkdir()
        elif name == "rows.txt":
            path.write_text("{}")
        with pytest.raises(ConfigurationError, match=r"is no \.jsonl file"):
            ReviewFile(path)
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": ')
    with pytest.raises(DataError, match="line 2"):
        ReviewFile(tmp_path / "broken.jsonl")
    with pytest.raises(DataError, match=r"row 1, has no `prompt` or no `completion`"):
        ReviewFile(write(tmp_path / "other.jsonl", [{"question": "a"}]))


def test_a_kill_loses_no_decision_that_was_saved(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [row(number, padding="x" * 2000) for number in range(300)])
    program = f"from trl_r1.pipeline.review import run; run([{str(path)!r}, '--no-browser'])"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = next(line.strip() for line in process.stdout if "http" in line)
        host, _, token = address.removeprefix("http://").partition("/?token=")
        saved = 0
        connection = http.client.HTTPConnection(host, timeout=10)
        killer = threading.Timer(1.0, process.send_signal, (signal.SIGKILL,))
        killer.start()
        try:
            while True:
                connection.request("POST", f"/api/row/{saved}", '{"status": "keep"}', {"X-Token": token})
                assert connection.getresponse().read()
                saved = (saved + 1) % 300
        except (OSError, http.client.HTTPException):
            pass
        killer.join()
    assert process.returncode == -signal.SIGKILL
    rows = read(path)  # whole: every line is JSON
    assert len(rows) == 300
    assert saved > 3
    assert all(one["review"]["status"] == "keep" for one in rows[:saved])
    assert ReviewFile(path).counts()["keep"] >= saved
