"""A judge model behind an OpenAI-compatible server (vLLM, SGLang, llama.cpp, a provider): the requests, no more.

Only the standard library is used, so that a worker process can ask it too.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from trl_r1.exceptions import ConfigurationError, TrlR1Error, unknown

API_KEY = "TRL_R1_JUDGE_API_KEY"
# Answers that another try does not change: a wrong key, address or model.
_SETTINGS_AT_FAULT = (401, 403, 404)
# Others that do not change either, and are this prompt's doing: it is too long, or refused by a filter.
_PROMPT_AT_FAULT = (400, 413, 422)
_LONGEST_REPLY = 1 << 20
_LONGEST_PAUSE = 20.0


class JudgeUnavailable(TrlR1Error, RuntimeError):
    """A judge that gave no reply within its tries and its time."""


@dataclass(frozen=True)
class JudgeServer:
    """A model behind a server that speaks OpenAI's chat completions. Picklable; the key is never part of it.

    Args:
        base_url (`str`): Up to the version, such as `"http://localhost:8000/v1"`.
        model (`str`): Its name on the server.
        api_key_env (`str`, defaults to `"TRL_R1_JUDGE_API_KEY"`): The environment variable that holds the key, if any.
        concurrency (`int`, defaults to 16): Requests at once, of each process that asks.
        timeout (`float`, defaults to 30.0): Seconds for one request.
        retries (`int`, defaults to 3): Further tries after a timeout, a broken connection or a status of 429 or 5xx.
        backoff (`float`, defaults to 0.5): Seconds before the first of them; doubled each time, with jitter.
        seconds (`float`, defaults to 35.0):
            Seconds for one prompt with all its tries. A [`Judge`] asks up to three times for a reply that it can read; that
            is still within the 120 s that a worker has for one item.
        max_tokens (`int`, defaults to 2048): Cap of a reply, the judge's own thinking included.

    Raises:
        [`ConfigurationError`]: For values outside their range.
    """

    base_url: str
    model: str
    api_key_env: str = API_KEY
    concurrency: int = 16
    timeout: float = 30.0
    retries: int = 3
    backoff: float = 0.5
    seconds: float = 35.0
    max_tokens: int = 2048

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise ConfigurationError(
                f"The judge's base_url is {self.base_url!r}. Give a whole address, such as http://localhost:8000/v1."
            )
        if not self.model:
            raise ConfigurationError("The judge's model is empty. Name the model that the server serves.")
        for name in ("concurrency", "timeout", "seconds", "max_tokens"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"The judge's {name}={getattr(self, name)!r} must be positive.")
        if self.retries < 0 or self.backoff < 0:
            raise ConfigurationError(
                f"The judge's retries={self.retries} and backoff={self.backoff} must not be negative."
            )

    def ask_all(self, prompts: Sequence[str], temperature: float = 0.0) -> list[str | JudgeUnavailable]:
        """Ask for a reply to each prompt, `concurrency` at a time.

        Args:
            prompts (`Sequence[str]`): Each becomes one message of the user.
            temperature (`float`, defaults to 0.0): Of the sampling.

        Returns:
            `list[str | JudgeUnavailable]`: Replies in order, or why there is none.

        Raises:
            [`ConfigurationError`]: When the server refuses the key, the address or the model.
        """

        def ask(prompt: str) -> str | JudgeUnavailable:
            try:
                return self.ask(prompt, temperature)
            except JudgeUnavailable as error:
                return error

        if len(prompts) == 1:
            return [ask(prompts[0])]
        with ThreadPoolExecutor(max(1, min(self.concurrency, len(prompts))), "trl_r1-judge") as threads:
            return list(threads.map(ask, prompts))

    def ask(self, prompt: str, temperature: float = 0.0) -> str:
        """Ask for one reply, again after a failure that may pass.

        Raises:
            [`JudgeUnavailable`]: After the last try, or when the time is over.
            [`ConfigurationError`]: When the server refuses the key, the address or the model.
        """
        end = time.monotonic() + self.seconds
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": temperature,
            "max_tokens": self.max_tokens,
        }
        for attempt in range(self.retries + 1):
            pause = self.backoff * 2**attempt * random.uniform(0.5, 1.0)
            try:
                return _content(self._request("/chat/completions", body, min(self.timeout, end - time.monotonic())))
            except urllib.error.HTTPError as error:
                problem = f"status {error.code}: {_explanation(error)}"
                self._raise_if_final(error.code, problem)
                pause = max(pause, _retry_after(error))
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem = f"{type(error).__name__}: {error}"
            pause = min(pause, _LONGEST_PAUSE)
            if attempt == self.retries or time.monotonic() + pause >= end:
                break
            time.sleep(pause)
        raise JudgeUnavailable(f"{self.base_url} gave no reply after {attempt + 1} tries; the last: {problem}")

    def check(self) -> None:
        """Refuse a server that is not there or does not have the model.

        Raises:
            [`ConfigurationError`]: Saying which.
        """
        try:
            listed = self._request("/models", None, self.timeout)
        except urllib.error.HTTPError as error:
            if error.code in (404, 405, 501):
                return  # not every server lists its models
            problem = f"status {error.code}: {_explanation(error)}"
        except (OSError, http.client.HTTPException, ValueError) as error:
            problem = f"{type(error).__name__}: {error}"
        else:
            models = [entry.get("id") for entry in listed.get("data") or [] if isinstance(entry, dict)]
            if models and self.model not in models:
                raise unknown(f"judge model on {self.base_url}", self.model, models)
            return
        raise ConfigurationError(
            f"The judge at {self.base_url} does not answer ({problem}). Start it (`vllm serve MODEL`), correct the address, "
            f"or put its key into the environment variable {self.api_key_env}."
        )

    def _raise_if_final(self, code: int, problem: str) -> None:
        if code in _SETTINGS_AT_FAULT:
            raise ConfigurationError(
                f"The judge {self.model!r} at {self.base_url} refuses: {problem}. Correct the address or the model, or put "
                f"the right key into the environment variable {self.api_key_env}."
            )
        if code in _PROMPT_AT_FAULT:
            raise JudgeUnavailable(f"{self.base_url} refuses this prompt: {problem}")

    def _request(self, path: str, body: dict[str, Any] | None, timeout: float) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.api_key_env):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base_url.rstrip("/") + path, data, headers)
        end = time.monotonic() + timeout
        chunks: list[bytes] = []
        with urllib.request.urlopen(request, timeout=max(timeout, 0.1)) as response:
            # The socket's own timeout starts again with every byte that arrives.
            while chunk := response.read1(65_536):
                chunks.append(chunk)
                if time.monotonic() > end:
                    raise TimeoutError(f"no whole reply within {timeout:.1f} s")
                if sum(map(len, chunks)) > _LONGEST_REPLY:
                    raise ValueError(f"a reply of more than {_LONGEST_REPLY} bytes")
        reply = json.loads(b"".join(chunks))
        if not isinstance(reply, dict):
            raise ValueError(f"not an object: {str(reply)[:100]}")
        return reply


def _content(reply: dict[str, Any]) -> str:
    """Return the text of a chat completion. What a reasoning parser split off is not needed."""
    try:
        content = reply["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"not a chat completion: {str(reply)[:200]}") from error
    return content if isinstance(content, str) else ""


def _explanation(error: urllib.error.HTTPError) -> str:
    try:
        return error.read(500).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException):
        return str(error.reason)


def _retry_after(error: urllib.error.HTTPError) -> float:
    value = error.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else 0.0
