"""`trl-r1 review FILE`: a page on this machine on which a person keeps, drops or edits traces.

The people who look at the cold-start data (arXiv 2501.12948v1 §2.3.1) do it here.

The server answers on 127.0.0.1 only, to whoever has the token in the address that it prints, and serves one page and one
file. Every decision is written back to the JSONL at once, whole or not at all; edits keep the first text beside them.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import secrets
import threading
import webbrowser
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from trl_r1.behaviours import words
from trl_r1.data.cold_start_rows import STATUSES, edited, json_line, plain_summary, read_rows, verdict_of
from trl_r1.data.filters import default_filters, question_text
from trl_r1.exceptions import ConfigurationError, DataError, TrlR1Error
from trl_r1.generation.shards import write_whole
from trl_r1.responses import ANSWER_OPEN, completion_text, parse
from trl_r1.rows import Completion, Row
from trl_r1.verifiers import gold_answer

logger = logging.getLogger(__name__)

_PAGE = Path(__file__).with_name("review.html")
_HOST = "127.0.0.1"
# A trace of 32,768 tokens has about 130,000 characters.
_LARGEST_REQUEST = 8 << 20
_SHOWN_CHARACTERS = 200


class ChangedElsewhereError(TrlR1Error, RuntimeError):
    """The file is not what was read: another program wrote to it."""


class ReviewFile:
    """A JSONL of traces under review.

    Args:
        path (`str` or `Path`): The file; rows as [`~trl_r1.data.cold_start_rows.ColdStartRow`], or any with `prompt` and
            `completion`.

    Raises:
        [`ConfigurationError`]: There is no such file, or it is no JSONL.
        [`DataError`]: A row is damaged, or has no prompt or completion; says which.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        if not self.path.is_file() or self.path.suffix != ".jsonl":
            raise ConfigurationError(
                f"{str(path)!r} is no .jsonl file. Give one that a cold start wrote, such as cold_start.jsonl."
            )
        self._lock = threading.Lock()
        self._signature = self._stat()
        self.rows = [_complete(row, number, self.path) for number, row in enumerate(read_rows(self.path), start=1)]
        # Encoded once: of a file of thousands of long traces, a decision changes one.
        self._lines = [json_line(row) for row in self.rows]

    def entry(self, index: int) -> dict[str, Any]:
        """What the list of rows shows of one."""
        row = self.rows[index]
        return {
            "index": index,
            "question": question_text(row["prompt"])[:_SHOWN_CHARACTERS],
            "source": row.get("source") or "",
            "language": row.get("language") or "",
            "status": row["review"]["status"],
            "edited": bool(row["review"].get("edited")),
            "correct": row["verdict"].get("correct"),
        }

    def shown(self, index: int) -> dict[str, Any]:
        """One row with what is worked out for the reader: gold answer, words, what the filters say."""
        row = self.rows[index]
        asked = Row.from_columns({"reference": "", **row})
        completion = Completion(row["completion"])
        reasons = (check(asked, completion) for check in default_filters())
        return {
            **row,
            "gold": gold_answer(asked) or asked.reference,
            "form": "answer" if ANSWER_OPEN in row["completion"] else "boxed",
            "words": len(words(row["reasoning"])),
            "readability": [reason for reason in reasons if reason],
        }

    def change(self, index: int, change: Mapping[str, Any]) -> None:
        """Apply what the reader did to a row and write the file.

        Args:
            index (`int`): Of the row.
            change (`Mapping`): One of `{"status": …}`, `{"edit": {"reasoning", "summary", "answer"}}`, `{"restore": true}`;
                `{"note": …}` may stand beside any of them.

        Raises:
            [`DataError`]: For a status that does not exist, or text that makes no row.
            [`ChangedElsewhereError`]: Another program has written to the file.
        """
        with self._lock:
            if self._stat() != self._signature:
                raise ChangedElsewhereError(
                    f"{self.path.name} was changed by another program. Stop this review and start it again; nothing was "
                    "written over."
                )
            row = _changed(self.rows[index], change)
            line = json_line(row)
            write_whole(self.path, "".join([*self._lines[:index], line, *self._lines[index + 1 :]]))
            self.rows[index], self._lines[index] = row, line
            self._signature = self._stat()

    def counts(self) -> dict[str, int]:
        """Rows by status."""
        found = Counter(row["review"]["status"] for row in self.rows)
        return {status: found[status] for status in STATUSES}

    def _stat(self) -> tuple[int, int, int]:
        stat = self.path.stat()
        return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _complete(row: dict[str, Any], number: int, path: Path) -> dict[str, Any]:
    """Give a row of another origin what the page needs."""
    if row.get("prompt") is None or row.get("completion") is None:
        raise DataError(f"{path}, row {number}, has no `prompt` or no `completion`. It has: {', '.join(row)}.")
    row = {**row, "completion": completion_text(row["completion"])}
    response = parse(row["completion"])
    row.setdefault("reasoning", response.reasoning)
    row.setdefault("summary", plain_summary(response.summary))
    row.setdefault("answer", response.answer or "")
    row.setdefault("trace_id", f"row {number}")
    if not isinstance(row.get("verdict"), dict):
        row["verdict"] = {name: found for name, found in verdict_of(row, row["completion"]).items() if name != "answer"}
    row["review"] = {"status": "pending", "edited": False, "note": "", **(row.get("review") or {})}
    return row


def _changed(row: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    review = dict(row["review"])
    result = dict(row)
    if "edit" in change:
        text = change["edit"]
        if not isinstance(text, Mapping) or not all(
            isinstance(text.get(n), str) for n in ("reasoning", "summary", "answer")
        ):
            raise DataError("An edit needs `reasoning`, `summary` and `answer`, all text.")
        # What a person wrote over a model's text still goes back to the model's, not to what the model was given.
        review.setdefault("before", {name: row[name] for name in ("reasoning", "summary", "answer", "completion")})
        result = edited(row, text["reasoning"], text["summary"], text["answer"])
        review["edited"] = True
    if change.get("restore") and "before" in review:
        result |= review.pop("before")
        result["verdict"] = {n: v for n, v in verdict_of(row, result["completion"]).items() if n != "answer"}
        if not row.get("rewritten"):
            result["original"] = None
        review["edited"] = False
    if "status" in change:
        if change["status"] not in STATUSES:
            raise DataError(f"Unknown status {change['status']!r}. Allowed: {', '.join(STATUSES)}.")
        review["status"] = change["status"]
    if "note" in change:
        review["note"] = str(change["note"])
    return {**result, "review": review}


class ReviewServer(ThreadingHTTPServer):
    """Serves the page of one file on 127.0.0.1.

    Args:
        file ([`ReviewFile`]): What is reviewed.
        port (`int`, defaults to 0): Port; 0 for any that is free.
    """

    daemon_threads = True

    def __init__(self, file: ReviewFile, port: int = 0) -> None:
        self.file = file
        self.token = secrets.token_urlsafe(24)
        try:
            super().__init__((_HOST, port), _Handler)
        except OSError as error:
            raise ConfigurationError(
                f"Port {port} cannot be used: {error.strerror}. Leave --port out for a free one."
            ) from None

    @property
    def address(self) -> str:
        """The address to open, token included."""
        return f"http://{_HOST}:{self.server_port}/?token={self.token}"


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer
    server_version, sys_version = "trl-r1", ""
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """The page, the list of rows, or one row."""
        address = urlsplit(self.path)
        given = parse_qs(address.query).get("token", [self.headers.get("X-Token", "")])[0]
        if not self._allowed(given):
            return
        if address.path == "/":
            self._page()
        elif address.path == "/api/rows":
            file = self.server.file
            self._json({"file": file.path.name, "rows": [file.entry(index) for index in range(len(file.rows))]})
        elif (index := self._index(address.path)) is not None:
            self._json(self.server.file.shown(index))
        else:
            self._json({"error": "There is nothing here."}, HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        """A decision or an edit."""
        size = self.headers.get("Content-Length", "")
        if not size.isdecimal() or int(size) > _LARGEST_REQUEST:
            self.close_connection = True
            self._json({"error": "The request is too large."}, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        body = self.rfile.read(int(size))
        # Other pages of this browser cannot set this header without being asked first, which is refused.
        if not self._allowed(self.headers.get("X-Token", "")):
            return
        index, file = self._index(urlsplit(self.path).path), self.server.file
        if index is None:
            self._json({"error": "There is no such row."}, HTTPStatus.NOT_FOUND)
            return
        try:
            change = json.loads(body)
            if not isinstance(change, dict):
                raise DataError("A change is a JSON object.")
            file.change(index, change)
        except ChangedElsewhereError as error:
            self._json({"error": str(error)}, HTTPStatus.CONFLICT)
        except (DataError, ValueError) as error:
            self._json({"error": str(error)}, HTTPStatus.BAD_REQUEST)
        except OSError as error:
            self._json({"error": f"The file cannot be written: {error}."}, HTTPStatus.INTERNAL_SERVER_ERROR)
        else:
            self._json({"row": file.shown(index), "entry": file.entry(index)})

    def _allowed(self, token: str) -> bool:
        """Refuse who does not have the token, and names that only point to this machine (DNS rebinding)."""
        hosts = {f"{name}:{self.server.server_port}" for name in (_HOST, "localhost")}
        if secrets.compare_digest(token.encode(), self.server.token.encode()) and self.headers.get("Host") in hosts:
            return True
        self._json({"error": "Open the address that `trl-r1 review` printed."}, HTTPStatus.FORBIDDEN)
        return False

    def _index(self, path: str) -> int | None:
        """The row that a path names."""
        number = path.removeprefix("/api/row/")
        if number == path or not (number.isascii() and number.isdecimal() and len(number) < 10):
            return None
        return int(number) if int(number) < len(self.server.file.rows) else None

    def _page(self) -> None:
        nonce = secrets.token_urlsafe(12)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'unsafe-inline'; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        page = _PAGE.read_text(encoding="utf-8").replace("@NONCE@", nonce)
        self._send(page.encode(), "text/html; charset=utf-8", HTTPStatus.OK, {"Content-Security-Policy": policy})

    def _json(self, data: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(data, ensure_ascii=False).encode("utf-8", "replace"), "application/json", status, {})

    def _send(self, body: bytes, kind: str, status: HTTPStatus, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        common = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
        for name, value in (common | dict(headers)).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the terminal free: addresses hold the token."""


def run(args: list[str]) -> int:
    """Serve a file until Ctrl-C, for `trl-r1 review`.

    Args:
        args (`list[str]`): The file, and options.

    Returns:
        `int`: Exit status.

    Raises:
        [`ConfigurationError`] or [`DataError`]: For a file that cannot be reviewed, or a port that is taken.
    """
    parser = argparse.ArgumentParser(
        prog="trl-r1 review", description="Keep, drop or edit the traces of a JSONL file, in a browser on this machine."
    )
    parser.add_argument("file", help="such as runs/cold_start_nano/cold_start.jsonl")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: any that is free)")
    parser.add_argument("--no-browser", action="store_true", help="print the address only")
    options = parser.parse_args(args)
    file = ReviewFile(options.file)
    with ReviewServer(file, options.port) as server:
        print(
            f"Reviewing {len(file.rows):,} rows of {options.file} at\n\n    {server.address}\n\nCtrl-C ends it.",
            flush=True,
        )
        if not options.no_browser and (os.environ.get("DISPLAY") or os.name == "nt" or os.uname().sysname == "Darwin"):
            webbrowser.open(server.address)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    counts = file.counts()
    print(
        f"\n{counts['keep']:,} kept, {counts['drop']:,} dropped, {counts['pending']:,} to do. All of it is in {options.file}."
    )
    return 0
