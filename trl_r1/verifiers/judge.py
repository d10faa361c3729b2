"""Is this answer right? An LLM compares it with the reference, for prompts without a rule (arXiv 2501.12948v1 §2.3.3).

The judge is a model behind an OpenAI-compatible server ([`JudgeServer`]) or any [`~trl_r1.generation.base.Sampler`]. It
replies in JSON, `analysis` and `correctness`. It sees the question, the reference and the final answer, never the
thinking: a policy must not be able to talk its judge round there. A reply that cannot be read is asked for again; where
none can be read, the verdict is `None`.

```python
from trl_r1.verifiers.judge import Judge, JudgeServer, configure_judge
configure_judge(Judge(JudgeServer("http://localhost:8000/v1", "Qwen/Qwen2.5-72B-Instruct")))
```

or, without code, by the environment variables `TRL_R1_JUDGE_URL`, `TRL_R1_JUDGE_MODEL`, `TRL_R1_JUDGE_API_KEY` and
`TRL_R1_JUDGE_PROMPT`. Rows ask for it by `verifier: judge`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

from jinja2 import Template

from trl_r1.exceptions import ConfigurationError, unknown
from trl_r1.generation.base import Sampler, SamplingSettings, sample_all
from trl_r1.prompts import template_source
from trl_r1.rows import Prompt, Row, Verdict
from trl_r1.verifiers.judge_server import API_KEY, JudgeServer, JudgeUnavailable

__all__ = ["Judge", "JudgeServer", "JudgeUnavailable", "configure_judge", "current_judge"]

URL, MODEL, PROMPT = "TRL_R1_JUDGE_URL", "TRL_R1_JUDGE_MODEL", "TRL_R1_JUDGE_PROMPT"
# `judge` explains the task to any instruction-tuned model; `judge_brief` is the short form that nano was taught.
PROMPTS = ("judge", "judge_brief")
MAX_CHARACTERS = 20_000
# Verdicts kept per process: several steps of R1's size (8,192 completions).
CACHED = 65_536
# A greedy reply that cannot be read would come out the same again.
_RETRY_TEMPERATURE = 0.7
_MOST_OBJECTS = 64
# How the detail of a verdict begins for which no server could be reached.
NO_REPLY = "no reply: "
_VERDICTS = {"correct": True, "incorrect": False, True: True, False: False}
_HOW = (
    f"Set the environment variables {URL} (such as http://localhost:8000/v1) and {MODEL} ({API_KEY} holds the key, if there "
    "is one), or call `trl_r1.verifiers.configure_judge(Judge(JudgeServer(base_url, model)))` before the run."
)

logger = logging.getLogger(__name__)

Case = tuple[str, str, str]


class Judge:
    """A model that says whether answers agree with their references.

    Safe to share between threads. Verdicts are cached by question, reference and answer, so that equal answers of a group,
    and evaluations of the same answer later, cost one reply.

    Args:
        model ([`JudgeServer`] or [`~trl_r1.generation.base.Sampler`]): Who replies.
        prompt (`str`, defaults to `"judge"`): `"judge"` or, for a judge of nano's size, `"judge_brief"`.
        retries (`int`, defaults to 2): How often a reply that cannot be read is asked for again.
        max_tokens (`int`, defaults to 2048): Cap of a sampler's reply; a server has its own.

    Raises:
        [`ConfigurationError`]: For an unknown prompt or a negative number of retries.
    """

    def __init__(
        self, model: JudgeServer | Sampler, *, prompt: str = "judge", retries: int = 2, max_tokens: int = 2048
    ) -> None:
        if prompt not in PROMPTS:
            raise unknown("prompt of the judge", prompt, PROMPTS)
        if retries < 0:
            raise ConfigurationError(f"The judge's retries={retries} must not be negative.")
        self.model = model
        self.prompt = prompt
        self.retries = retries
        self.max_tokens = max_tokens
        self._cache: OrderedDict[Case, Verdict] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the cache behind: a copy for a worker process is equal whatever was judged before."""
        if not isinstance(self.model, JudgeServer):
            raise TypeError(
                "a judge that is a local sampler lives in one process. Worker processes (RewardPool) need a server: "
                "Judge(JudgeServer(base_url, model)). Or use the reward without RewardPool"
            )
        return {name: value for name, value in vars(self).items() if name not in ("_cache", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _cache=OrderedDict(), _lock=threading.Lock())

    def check(self) -> None:
        """Refuse a server that is not there or lacks the model, before anything runs.

        Raises:
            [`ConfigurationError`]: Saying which.
        """
        if isinstance(self.model, JudgeServer):
            self.model.check()

    def render(self, question: str, reference: str, answer: str, language: str | None = None) -> str:
        """Return the prompt that the judge is given."""
        return _template(self.prompt).render(
            question=question, reference=reference, prediction=answer, language=language
        )

    def verdicts(self, answers: Sequence[str], rows: Sequence[Row]) -> list[Verdict]:
        """Judge answers, all at once as far as the judge can.

        Args:
            answers (`Sequence[str]`): Final answers; thinking, should there be any, is cut off.
            rows (`Sequence[Row]`): The questions with their references.

        Returns:
            `list[Verdict]`: `correct` is `None` where no reply could be read, or none came: `detail` then begins with
            [`NO_REPLY`].

        Raises:
            [`ConfigurationError`]: When a server refuses the key, the address or the model.
        """
        cases = [
            (question_text(row.prompt), row.reference.strip(), visible(answer))
            for answer, row in zip(answers, rows, strict=True)
        ]
        known: dict[Case, Verdict] = {}
        todo: dict[Case, str] = {}
        for case, row in zip(cases, rows, strict=True):
            found = self._look_up(case)
            if found is not None:
                known[case] = found
            elif not case[2]:
                known[case] = Verdict(False, "no answer")
            elif len(case[2]) > MAX_CHARACTERS:
                known[case] = Verdict(False, f"longer than {MAX_CHARACTERS} characters")
            else:
                todo[case] = self.render(*case, language=row.language)
        if todo:
            known |= self._ask(todo)
        return [known[case] for case in cases]

    def _ask(self, todo: dict[Case, str]) -> dict[Case, Verdict]:
        """Ask until every reply can be read, or the tries are used up."""
        done: dict[Case, Verdict] = {}
        left = list(todo)
        for attempt in range(self.retries + 1):
            unreadable = []
            for case, reply in zip(left, self._replies([todo[case] for case in left], attempt), strict=True):
                found = None if isinstance(reply, JudgeUnavailable) else read_reply(reply)
                if found is not None:
                    done[case] = Verdict(*found)
                    self._remember(case, done[case])
                elif isinstance(reply, JudgeUnavailable):
                    done[case] = Verdict(None, f"{NO_REPLY}{reply}")
                else:
                    done[case] = Verdict(None, f"unreadable reply {reply[-200:]!r}")
                    unreadable.append(case)
            left = unreadable
            if not left:
                break
        if lost := [verdict.detail for verdict in done.values() if verdict.correct is None]:
            logger.warning(
                "The judge gave no verdict on %d of %d answers. The first: %s", len(lost), len(done), lost[0]
            )
        return done

    def _replies(self, prompts: list[str], attempt: int) -> Sequence[str | JudgeUnavailable]:
        temperature = _RETRY_TEMPERATURE if attempt else 0.0
        if isinstance(self.model, JudgeServer):
            return self.model.ask_all(prompts, temperature)
        settings = SamplingSettings(temperature=temperature, max_tokens=self.max_tokens, seed=attempt)
        return [group[0].prefill + group[0].text for group in sample_all(self.model, prompts, 1, settings)]

    def _look_up(self, case: Case) -> Verdict | None:
        with self._lock:
            if case in self._cache:
                self._cache.move_to_end(case)
            return self._cache.get(case)

    def _remember(self, case: Case, verdict: Verdict) -> None:
        with self._lock:
            self._cache[case] = verdict
            if len(self._cache) > CACHED:
                self._cache.popitem(last=False)


@lru_cache(maxsize=len(PROMPTS))
def _template(name: str) -> Template:
    return Template(template_source(name))


def read_reply(text: str) -> tuple[bool, str] | None:
    """Read a judge's reply.

    Args:
        text (`str`): What it wrote, thinking included; anything may stand around the JSON object.

    Returns:
        `tuple[bool, str]` or `None`: Correctness and analysis; `None` when there is no such object, or two that differ.

    Example:

    ```python
    >>> from trl_r1.verifiers.judge import read_reply
    >>> read_reply('<think> 5 = 5 </think> {"analysis": "same value", "correctness": "correct"}')
    (True, 'same value')
    ```
    """
    said = text.rpartition("</think>")[2]
    decoder, found = json.JSONDecoder(), []
    for match in islice(re.finditer(r"\{", said), _MOST_OBJECTS):
        try:
            value, _ = decoder.raw_decode(said, match.start())
        except (ValueError, RecursionError):
            continue
        correct, analysis = value.get("correctness"), value.get("analysis")
        correct = correct.strip().lower() if isinstance(correct, str) else correct
        if isinstance(correct, str | bool) and correct in _VERDICTS and isinstance(analysis, str):
            found.append((_VERDICTS[correct], analysis))
    return found[-1] if len({correct for correct, _ in found}) == 1 else None


def visible(answer: str) -> str:
    """Return what a reader sees of an answer: nothing up to the last `</think>`, nothing of thinking that never ends."""
    return answer.rpartition("</think>")[2].partition("<think>")[0].strip()


def question_text(prompt: Prompt) -> str:
    """Return the question in a prompt: R1-Zero's template around it is taken off, messages are joined."""
    if isinstance(prompt, str):
        before, _, after = template_source("r1_zero").partition("{{ prompt }}")
        inside = re.fullmatch(
            re.escape(before) + r"(.*?)" + re.escape(after) + r"\s*(?:<think>\s*)?", prompt, re.DOTALL
        )
        return (inside[1] if inside else prompt).strip()
    turns = [(message["role"], message["content"].strip()) for message in prompt if message["role"] != "system"]
    if len(turns) == 1:
        return turns[0][1]
    return "\n".join(f"{role.capitalize()}: {text}" for role, text in turns)


# --- Which judge ---

_judge: Judge | None = None


def configure_judge(judge: Judge | None) -> None:
    """Set the judge of this process, in place of the one that environment variables name; `None` for none of its own."""
    global _judge
    _judge = judge


def configured() -> Judge | None:
    """Return what [`configure_judge`] set, to be given to a worker process; environment variables reach those anyway."""
    return _judge


def current_judge() -> Judge:
    """Return the judge of this process.

    Raises:
        [`ConfigurationError`]: When there is none, saying how to name one.
    """
    if _judge is not None:
        return _judge
    url, model = os.environ.get(URL, ""), os.environ.get(MODEL, "")
    if not url or not model:
        missing = " and ".join(name for name, value in ((URL, url), (MODEL, model)) if not value)
        raise ConfigurationError(f"Rows are verified by the judge, and there is none ({missing} not set). {_HOW}")
    return _from_environment(url, model, os.environ.get(PROMPT) or "judge")


@lru_cache(maxsize=4)
def _from_environment(url: str, model: str, prompt: str) -> Judge:
    return Judge(JudgeServer(url, model), prompt=prompt)


# --- As every verifier ---


def verify(answer: str, row: Row) -> Verdict:
    """Ask the judge whether an answer agrees with the reference.

    Args:
        answer (`str`): The final answer.
        row ([`Row`]): Its `reference` is any text.

    Returns:
        [`Verdict`]: `correct` is `None` when the reference is empty, or the judge gave no reply that can be read.

    Raises:
        [`ConfigurationError`]: When there is no judge, or a server refuses the key, the address or the model.
    """
    if problem := readable(row):
        return Verdict(None, problem)
    return current_judge().verdicts([answer], [row])[0]


def readable(row: Row) -> str | None:
    """Return why the reference of a row cannot be used, or `None` when it can. Asks no judge."""
    return None if row.reference.strip() else "empty"


def gold_answer(row: Row) -> str | None:
    """Return the reference."""
    return row.reference.strip() or None


def find_lenient(text: str, row: Row) -> str | None:
    """Return all that follows the thinking, tags of the answer aside."""
    return re.sub(r"</?answer>", " ", visible(text)).strip() or None
