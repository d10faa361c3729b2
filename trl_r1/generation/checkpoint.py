"""The model that a sampler loads: base and adapter told apart, read before any weight, and a fingerprint of its files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from trl_r1.exceptions import ConfigurationError
from trl_r1.generation.config import SamplerConfig
from trl_r1.prompts import PromptTemplate, select_template

_ADAPTER_CONFIG = "adapter_config.json"
# What decides what a model writes; weights are looked at in blocks, since any training step changes nearly all of them.
_FINGERPRINTED = ("*.safetensors", "*.bin", "config.json", "generation_config.json", "tokenizer.json", _ADAPTER_CONFIG)
_BLOCKS, _BLOCK_BYTES = 16, 1 << 16


@dataclass(frozen=True)
class Checkpoint:
    """A model to sample from.

    Args:
        base (`str`): Hub id or folder of the whole model.
        revision (`str`, *optional*): Of a Hub id.
        adapter (`str`, *optional*): Folder or Hub id of a LoRA adapter on it.
    """

    base: str
    revision: str | None = None
    adapter: str | None = None

    @classmethod
    def of(cls, config: SamplerConfig) -> Checkpoint:
        """Read which model a configuration means; the folder of an adapter names its base itself.

        Raises:
            [`ConfigurationError`]: There is no such folder or model, or two adapters.
        """
        name, adapter = config.model_name_or_path, config.adapter
        assert name is not None  # choose_backend has seen to it
        revision = None if Path(name).is_dir() else config.model_revision
        if Path(name, _ADAPTER_CONFIG).is_file() and not Path(name, "config.json").is_file():
            if adapter is not None:
                raise ConfigurationError(f"{name!r} is an adapter itself; adapter={adapter!r} cannot be put on top.")
            name, adapter, revision = str(_adapter_settings(name).get("base_model_name_or_path")), name, None
        if adapter is not None and Path(adapter).is_dir() and not Path(adapter, _ADAPTER_CONFIG).is_file():
            raise ConfigurationError(f"adapter {adapter!r} holds no {_ADAPTER_CONFIG}: it is no PEFT adapter.")
        checkpoint = cls(name, revision, adapter)
        checkpoint.config()
        return checkpoint

    @property
    def name(self) -> str:
        """The model, as cards and manifests call it."""
        return self.base if self.adapter is None else self.adapter

    def config(self) -> Any:
        """Return the base model's configuration.

        Raises:
            [`ConfigurationError`]: There is no such model.
        """
        try:
            return AutoConfig.from_pretrained(self.base, revision=self.revision)
        except (OSError, ValueError) as error:
            of = f" (base model of adapter {self.adapter!r})" if self.adapter else ""
            raise ConfigurationError(
                f"Model {self.base!r}{of} cannot be read: {error} Give a Hub id or a folder with a config.json."
            ) from error

    def tokenizer(self) -> Any:
        """Return the tokenizer: the adapter's where it brings one (new tokens), else the base model's."""
        own = self.adapter is not None and any(Path(self.adapter).glob("tokenizer*"))
        name = self.adapter if own else self.base
        return AutoTokenizer.from_pretrained(name, revision=None if own else self.revision, padding_side="left")

    def template(self, config: SamplerConfig, tokenizer: Any) -> PromptTemplate:
        """Return the template that a configuration names for this model."""
        return select_template(
            tokenizer,
            config.template,
            form=config.answer_form,
            prefill_think=config.prefill_think,
            instruction=config.instruction,
        )

    def eos_token_ids(self, tokenizer: Any) -> list[int]:
        """List every id that ends a completion: the tokenizer's EOS and all of the generation config (trap 19)."""
        try:
            listed = GenerationConfig.from_pretrained(self.base, revision=self.revision or "main").eos_token_id
        except OSError:
            listed = getattr(self.config().get_text_config(), "eos_token_id", None)
        ids = listed if isinstance(listed, list | tuple) else [listed]
        return sorted({token for token in (tokenizer.eos_token_id, *ids) if token is not None})

    def lora_rank(self) -> int:
        """Return the largest rank that the adapter needs."""
        assert self.adapter is not None
        settings = _adapter_settings(self.adapter)
        return max([int(settings.get("r", 8)), *map(int, (settings.get("rank_pattern") or {}).values())])

    def fingerprint(self) -> str:
        """Return a digest that changes when the model does: of the files of a folder, of the name of a Hub id."""
        digest = hashlib.sha256()
        for name in (self.base, self.adapter):
            if name is not None and Path(name).is_dir():
                _digest_folder(Path(name), digest)
            else:
                digest.update(f"{name}@{self.revision}".encode())
        return digest.hexdigest()[:16]


def _adapter_settings(adapter: str) -> dict[str, Any]:
    path = Path(adapter, _ADAPTER_CONFIG)
    if path.is_file():
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return settings
    from peft import PeftConfig

    return dict(PeftConfig.from_pretrained(adapter).to_dict())


def _digest_folder(folder: Path, digest: Any) -> None:
    for path in sorted({path for pattern in _FINGERPRINTED for path in folder.glob(pattern)}):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for block in range(_BLOCKS):
                file.seek(max(0, (size - _BLOCK_BYTES) * block // (_BLOCKS - 1)))
                digest.update(file.read(_BLOCK_BYTES))
