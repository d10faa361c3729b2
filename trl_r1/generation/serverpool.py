"""Several servers that serve one model: the least loaded is asked, one that fails is left alone for a while."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from trl_r1.exceptions import ConfigurationError, EngineError
from trl_r1.generation.replies import refusal

logger = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_CONNECT_SECONDS = 10.0
# Refusals that pass: request timeout, too early, too many requests.
_PASSING = (408, 425, 429)


@dataclass(frozen=True)
class ServedModel:
    """A model as a server lists it.

    Args:
        id (`str`): Its name in requests.
        root (`str`): What it was loaded from, where the server says.
        is_vllm (`bool`): Whether the server is vLLM.
    """

    id: str
    root: str
    is_vllm: bool


class Failed(EngineError):
    """A request that failed on every attempt."""


class _Server:
    """One server's load and health."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.running = 0
        self.failures = 0
        self.rests_until = 0.0
        self.last_error = ""

    def failed(self, error: str) -> None:
        self.last_error = error
        if time.monotonic() < self.rests_until:
            return  # requests that were in flight together fail together: that is one failure
        self.failures += 1
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(10, self.failures - 1)) * random.uniform(0.7, 1.3)
        self.rests_until = time.monotonic() + pause

    def answered(self) -> None:
        self.failures, self.rests_until = 0, 0.0


class ServerPool:
    """The servers of one sampler.

    Args:
        urls (`Sequence[str]`): Their addresses, up to and including `/v1`.
        concurrency (`int`): Requests in flight per server.
        timeout (`float`): Seconds that one request may take.
        retries (`int`): Further attempts of a failed request.
        key (`str`, *optional*): Sent as bearer token.

    Raises:
        [`ConfigurationError`]: An address is not an HTTP one.
    """

    def __init__(
        self, urls: Sequence[str], *, concurrency: int, timeout: float, retries: int, key: str | None = None
    ) -> None:
        for url in urls:
            if not url.startswith(("http://", "https://")):
                raise ConfigurationError(f"server_urls holds {url!r}. It must look like http://host:8000/v1.")
        self._servers = [_Server(url) for url in dict.fromkeys(urls)]
        self._concurrency = concurrency
        self._timeout = timeout
        self._retries = retries
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client: httpx.AsyncClient | None = None

    @property
    def room(self) -> int:
        """Requests that may be in flight."""
        return self._concurrency * len(self._servers)

    def served_model(self, wanted: str | None) -> ServedModel:
        """Ask every server for its models.

        Args:
            wanted (`str`, *optional*): The model's name. Where a server serves a single model, that one is taken.

        Raises:
            [`EngineError`]: A server does not answer.
            [`ConfigurationError`]: The servers do not serve (one and the same) model.
        """
        found: dict[str, ServedModel] = {}
        for server in self._servers:
            found[server.url] = _choose(server.url, self._models(server.url), wanted)
        names = {model.id for model in found.values()}
        if len(names) > 1:
            listed = ", ".join(f"{url}: {model.id}" for url, model in found.items())
            raise ConfigurationError(f"The servers serve different models ({listed}). Name one by model_name_or_path.")
        return next(iter(found.values()))

    def _models(self, url: str) -> list[Mapping[str, Any]]:
        try:
            reply = httpx.get(f"{url}/models", headers=self._headers, timeout=_CONNECT_SECONDS, trust_env=False)
            if 400 <= reply.status_code < 500:
                raise refusal(reply.status_code, reply.text, url, "the list of models")
            models: list[Mapping[str, Any]] = reply.raise_for_status().json()["data"]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, ConfigurationError):
                raise
            raise EngineError(
                f"Server {url} does not answer ({type(error).__name__}: {error}). Start it (`vllm serve MODEL --port …`), or "
                "take it out of server_urls."
            ) from error
        return models

    async def post(
        self, path: str, body: Mapping[str, Any], what: str, check: Callable[[Any], None]
    ) -> Mapping[str, Any]:
        """Post to the least loaded server, and to others or again when that fails.

        Args:
            path (`str`): Below a server's address.
            body (`Mapping`): JSON.
            what (`str`): What is asked for, for errors.
            check (`Callable`): Raises `ValueError` for a reply that is not one.

        Raises:
            [`ConfigurationError`]: The server will never take this request.
            [`Failed`]: Every attempt failed.
        """
        for attempt in range(self._retries + 1):
            server = await self._free_server()
            server.running += 1
            try:
                reply = await asyncio.wait_for(self._post(server.url, path, body), self._timeout)
                if 400 <= reply.status_code < 500 and reply.status_code not in _PASSING:
                    raise refusal(reply.status_code, reply.text, server.url, what)
                if reply.status_code != 200:
                    raise ValueError(f"status {reply.status_code}: {reply.text[:200].strip()}")
                answer: Mapping[str, Any] = reply.json()
                check(answer)
                server.answered()
                return answer
            except ConfigurationError:
                raise
            except (TimeoutError, httpx.HTTPError, ValueError) as error:
                told = f"no reply within {self._timeout:g} s" if isinstance(error, asyncio.TimeoutError) else str(error)
                server.failed(f"{type(error).__name__}: {told}")
                logger.warning(
                    "%s failed on %s (%s), attempt %d of %d.",
                    what.capitalize(), server.url, server.last_error, attempt + 1, self._retries + 1,
                )  # fmt: skip
            finally:
                server.running -= 1
        states = "; ".join(f"{one.url}: {one.last_error or 'fine'}" for one in self._servers)
        raise Failed(
            f"No server gave {what} in {self._retries + 1} attempts ({states}). Samples that were stored are kept: bring the "
            "servers back and start again to go on from there, or raise server_retries or server_timeout."
        )

    async def _post(self, url: str, path: str, body: Mapping[str, Any]) -> httpx.Response:
        if self._client is None:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.room)
            timeout = httpx.Timeout(None, connect=_CONNECT_SECONDS)
            self._client = httpx.AsyncClient(headers=self._headers, limits=limits, timeout=timeout, trust_env=False)
        return await self._client.post(f"{url}/{path}", json=body)

    async def _free_server(self) -> _Server:
        """Wait for a server that does not rest and has room; the least loaded first."""
        while True:
            now = time.monotonic()
            ready = [one for one in self._servers if one.rests_until <= now and one.running < self._concurrency]
            if ready:
                # One that failed lately gets one request to try, not all that wait for it.
                trusted = [one for one in ready if not one.failures] or [one for one in ready if not one.running]
                if trusted:
                    return min(trusted, key=lambda one: one.running)
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None


def _choose(url: str, models: Sequence[Mapping[str, Any]], wanted: str | None) -> ServedModel:
    ids = [str(model.get("id")) for model in models]
    chosen = next((model for model in models if wanted in (model.get("id"), model.get("root"))), None)
    if chosen is None and len(models) == 1:
        chosen = models[0]  # served under a name of its own; `wanted` says whose tokenizer it has
        if wanted is not None:
            logger.warning("Server %s serves %s only, which is taken for %s.", url, ids[0], wanted)
    if chosen is None:
        raise ConfigurationError(f"Server {url} does not serve {wanted!r}. It serves: {', '.join(ids) or 'nothing'}.")
    return ServedModel(str(chosen["id"]), str(chosen.get("root") or ""), chosen.get("owned_by") == "vllm")
