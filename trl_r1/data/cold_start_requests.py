"""Stored answers count for what they were an answer to: a request that has changed is asked again under a key of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace

from trl_r1.generation.base import SampleRequest
from trl_r1.generation.shards import SampleStore
from trl_r1.rows import Prompt

# The fact beside a stored sample that names what was asked.
ASKED = "asked"


def asked_digest(prompt: Prompt) -> str:
    """Name what a request asks, its worked examples or the text to rewrite included, in a few letters."""
    text = json.dumps(prompt, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def requests_to_store(requests: Iterable[SampleRequest], store: SampleStore) -> dict[str, SampleRequest]:
    """Give requests another key where the store holds answers to another request under theirs.

    An unchanged request keeps its key, and with it its stored answers and seeds. So does one whose answers do not say what
    was asked, as in folders of earlier versions.

    Args:
        requests (`Iterable[SampleRequest]`): What is asked now.
        store ([`~trl_r1.generation.shards.SampleStore`]): What lies in its folder from earlier starts.

    Returns:
        `dict[str, SampleRequest]`: The request to make, by the key of the one given; in their order.
    """
    # Processes of one launch agree: what one of them has stored meanwhile was asked the same.
    earlier = {sample.key: sample.facts.get(ASKED) for sample in store.samples()}
    found: dict[str, SampleRequest] = {}
    for request in requests:
        asked = asked_digest(request.prompt)
        same = earlier.get(request.key) in (None, asked)
        found[request.key] = request if same else replace(request, key=f"{request.key}@{asked}")
    return found
