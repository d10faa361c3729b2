"""One set of settings for every sampler, and [`open_sampler`], which turns it into a [`Sampler`]."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from trl_r1.exceptions import ConfigurationError, unknown
from trl_r1.generation.base import Sampler, SamplingSettings
from trl_r1.prompts import CHOICES, FORMS, PromptTemplate

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "vllm", "transformers", "server")
APIS = ("completions", "chat")


@dataclass
class SamplerConfig:
    """Who samples, and how: for a stage's dataclass (inherit from it) or as one entry of its YAML ([`parse`]).

    A stage that needs a second sampler, or whose trainer has fields of these names (`seed`, `temperature`), holds it as an
    entry: a field `judge: dict | str | None` read by `SamplerConfig.parse(judge)`.

    Args:
        model_name_or_path (`str`, *optional*):
            Hub id or folder of a model, or folder of a PEFT adapter (its base model is read off it). Names such as `nano`
            are resolved by the pipeline ([`~trl_r1.pipeline.preflight.resolve_model`]) before a sampler is opened. For
            a server: the model it serves; asked of the server when missing.
        model_revision (`str`, *optional*): Revision of a Hub id.
        adapter (`str`, *optional*): Folder (or Hub id) of a LoRA adapter to put on the model.
        backend (`str`, defaults to `"auto"`):
            `"vllm"`, `"transformers"`, `"server"`, or `"auto"`: a server where `server_urls` are given, else vLLM where it is
            installed, else transformers; which one is logged.
        server_urls (`list[str]`, *optional*): OpenAI-compatible servers, such as `http://localhost:8000/v1`.
        server_api (`str`, defaults to `"completions"`):
            `"completions"`: prompts are rendered here, so that all backends ask the same; needs the model's tokenizer for
            a chat template. `"chat"`: messages are sent and the server applies its own template.
        server_concurrency (`int`, defaults to 64): Requests in flight per server.
        server_timeout (`float`, defaults to 600): Seconds that one request may take.
        server_retries (`int`, defaults to 5): Further attempts of a failed request, with growing pauses in between.
        server_key_env (`str`, defaults to `"OPENAI_API_KEY"`): Environment variable that holds the servers' key, if any.
        engine_options (`dict`, *optional*): Arguments of `vllm.LLM`, by vLLM's names.
        max_num_seqs (`int`, defaults to 256): Completions that decode at once (vLLM, transformers).
        dtype (`str`, defaults to `"auto"`): Type to compute in; `"auto"` is the checkpoint's, on a CPU float32.
        temperature (`float`, defaults to 1.0): R1 samples at 1.0 for training and cold start, evaluates at 0.6.
        top_p (`float`, defaults to 1.0): Nucleus; R1 is evaluated at 0.95.
        top_k (`int`, defaults to 0): Keep the k likeliest tokens; 0 keeps all.
        max_tokens (`int`, defaults to 1024): Cap of a completion, in tokens.
        stop (`list[str]`, *optional*): Texts that end a completion; they are kept in it.
        n (`int`, defaults to 1): Completions per question.
        seed (`int`, *optional*):
            Each completion's own seed follows from (seed, key of its question, index), so a run that is resumed draws what
            it would have drawn, as far as the backend's arithmetic allows. Costs vLLM speed on a GPU; without one, every
            start draws anew.
        template (`str`, defaults to `"auto"`): `"base"` (R1-Zero's plain text), `"chat"`, or chosen from the model.
        answer_form (`str`, defaults to `"answer"`): `"answer"` (R1-Zero's tags) or `"boxed"` (R1's own).
        prefill_think (`bool`, defaults to `False`): Open the thinking in the prompt.
        instruction (`str`, *optional*): Sentence added to the user's message of a chat; by default the one for the form.

    Raises:
        [`ConfigurationError`]: For a name or value that is not allowed.
    """

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Hub id or folder of the model that samples, or folder of a PEFT adapter."}
    )
    model_revision: str | None = field(default=None, metadata={"help": "Revision of a Hub id."})
    adapter: str | None = field(default=None, metadata={"help": "LoRA adapter to put on the model."})
    backend: str = field(default="auto", metadata={"help": f"One of {', '.join(BACKENDS)}."})
    server_urls: list[str] = field(
        default_factory=list, metadata={"help": "OpenAI-compatible servers, such as http://localhost:8000/v1."}
    )
    server_api: str = field(
        default="completions", metadata={"help": "completions (rendered here) or chat (the server's own template)."}
    )
    server_concurrency: int = field(default=64, metadata={"help": "Requests in flight per server."})
    server_timeout: float = field(default=600.0, metadata={"help": "Seconds that one request may take."})
    server_retries: int = field(default=5, metadata={"help": "Further attempts of a failed request."})
    server_key_env: str = field(
        default="OPENAI_API_KEY", metadata={"help": "Environment variable that holds the servers' key, if any."}
    )
    engine_options: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments of vllm.LLM, e.g. {max_model_len: 4096}."}
    )
    max_num_seqs: int = field(default=256, metadata={"help": "Completions that decode at once."})
    dtype: str = field(default="auto", metadata={"help": "Type to compute in: auto, float32, bfloat16, float16."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature (R1: 1.0; evaluation 0.6)."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus (R1's evaluation: 0.95)."})
    top_k: int = field(default=0, metadata={"help": "Keep the k likeliest tokens; 0 keeps all."})
    max_tokens: int = field(default=1024, metadata={"help": "Cap of a completion, in tokens."})
    stop: list[str] = field(default_factory=list, metadata={"help": "Texts that end a completion."})
    n: int = field(default=1, metadata={"help": "Completions per question."})
    seed: int | None = field(default=None, metadata={"help": "Equal seeds give equal samples, where they can."})
    template: str = field(default="auto", metadata={"help": "base, chat, or auto: chosen from the model."})
    answer_form: str = field(default="answer", metadata={"help": "answer (tags) or boxed."})
    prefill_think: bool = field(default=False, metadata={"help": "Open the thinking in the prompt."})
    instruction: str | None = field(default=None, metadata={"help": "Sentence added to a chat's user message."})

    def __post_init__(self) -> None:
        # A stage's dataclass may inherit from several of these.
        if (others := getattr(super(), "__post_init__", None)) is not None:
            others()
        self.engine_options = _mapping("engine_options", self.engine_options)
        for what, value, allowed in (
            ("backend", self.backend, BACKENDS),
            ("server_api", self.server_api, APIS),
            ("template", self.template, CHOICES),
            ("answer form", self.answer_form, FORMS),
        ):
            if value not in allowed:
                raise unknown(what, value, allowed)
        for name in ("n", "max_num_seqs", "server_concurrency"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name}={getattr(self, name)} must be at least 1.")
        self.settings()

    @classmethod
    def parse(cls, value: SamplerConfig | Mapping[str, Any] | str) -> SamplerConfig:
        """Read an entry of a YAML file or of the command line.

        Args:
            value ([`SamplerConfig`], `dict` or `str`): Settings by name, the same as JSON, or just a model.

        Raises:
            [`ConfigurationError`]: For a name or value that is not allowed.
        """
        if isinstance(value, SamplerConfig):
            return value
        if isinstance(value, str) and not value.lstrip().startswith("{"):
            return cls(model_name_or_path=value)
        entries = _mapping("sampler", value)
        allowed = [one.name for one in fields(SamplerConfig)]
        for name in entries:
            if name not in allowed:
                raise unknown("sampler setting", name, allowed)
        return cls(**entries)

    def settings(self, **changes: Any) -> SamplingSettings:
        """Return how completions are drawn, some of it changed: `config.settings(temperature=0)`."""
        own = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "max_tokens": self.max_tokens,
            "stop": tuple(self.stop),
            "seed": self.seed,
        }
        return SamplingSettings(**{**own, **changes})

    def sampler_settings(self) -> dict[str, Any]:
        """Return the fields of this class alone, where a stage's dataclass has others."""
        every = asdict(self)
        return {one.name: every[one.name] for one in fields(SamplerConfig)}


def _mapping(name: str, value: Any) -> dict[str, Any]:
    """Accept a mapping from YAML as it is, and one from the command line as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ConfigurationError(f"{name} is no JSON object: {value!r} ({error}).") from None
    if value is not None and not isinstance(value, Mapping):
        raise ConfigurationError(f"{name} is a {type(value).__name__}. It must map names to values.")
    return dict(value or {})


def choose_backend(config: SamplerConfig) -> str:
    """Return the backend that a configuration means, `"auto"` resolved and logged.

    Raises:
        [`ConfigurationError`]: Where no model is named, or `server_urls` and `backend` contradict each other.
    """
    backend = config.backend
    if backend == "auto":
        backend = "server" if config.server_urls else "vllm" if importlib.util.find_spec("vllm") else "transformers"
        logger.info("Sampling with %s (backend: auto).", backend)
    if backend == "server" and not config.server_urls:
        raise ConfigurationError("backend='server' needs server_urls, such as http://localhost:8000/v1.")
    if backend != "server" and config.server_urls:
        raise ConfigurationError(f"server_urls are given but backend={backend!r}. Set backend: server, or drop them.")
    if backend != "server" and config.model_name_or_path is None:
        raise ConfigurationError(f"backend={backend!r} needs model_name_or_path: a Hub id or a folder.")
    if backend != "vllm" and config.engine_options:
        names = ", ".join(config.engine_options)
        raise ConfigurationError(f"engine_options ({names}) are vLLM's, but backend={backend!r}. Drop them.")
    return backend


def open_sampler(
    config: SamplerConfig, *, tokenizer: Any = None, template: PromptTemplate | None = None, model: Any = None
) -> Sampler:
    """Open the sampler that a configuration describes. Close it when done (`with closing(open_sampler(config)) as …`).

    Everything that can be wrong with the settings is said before a weight is loaded.

    Args:
        config ([`SamplerConfig`]): Who samples. Its `settings()` go to `stream`.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): The model's, where it is loaded already.
        template ([`~trl_r1.prompts.PromptTemplate`], *optional*): Instead of the one that the configuration names.
        model (`PreTrainedModel`, *optional*): A loaded model to sample from; transformers only.

    Returns:
        [`Sampler`]: A `VLLMSampler`, `TransformersSampler` or `ServerSampler`.

    Raises:
        [`ConfigurationError`]: For settings that cannot work together or on this machine.
        [`MissingExtraError`]: vLLM is asked for and not installed.
        [`EngineError`]: A server cannot be reached.
    """
    backend = choose_backend(config)
    if backend != "transformers" and model is not None:
        raise ConfigurationError(f"A loaded model can be sampled with backend='transformers' only, not {backend!r}.")
    if backend == "vllm":
        from trl_r1.generation.vllm import VLLMSampler

        return VLLMSampler.from_config(config, tokenizer=tokenizer, template=template)
    if backend == "transformers":
        from trl_r1.generation.transformers import TransformersSampler

        return TransformersSampler.from_config(config, tokenizer=tokenizer, template=template, model=model)
    from trl_r1.generation.server import ServerSampler

    return ServerSampler.from_config(config, tokenizer=tokenizer, template=template)
