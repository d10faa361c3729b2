"""The float32 head under LoRA."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from trl_r1.exceptions import ConfigurationError
from trl_r1.modeling.head import use_float32_head


def policy(target_modules=("q_proj", "v_proj"), tied=True, dtype=torch.bfloat16):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=tied,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(dtype)
    return get_peft_model(model, LoraConfig(r=2, target_modules=list(target_modules)), autocast_adapter_dtype=False)


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_computed_in_float32(tied):
    model = policy(tied=tied)
    base, ids = model.get_base_model(), torch.arange(2, 22)[None]
    head_16 = base(ids).logits[0, :-1].float().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    use_float32_head(model, 1.0, ("log_probs", "entropy"))
    hidden = base.model(ids).last_hidden_state
    assert hidden.dtype == torch.bfloat16  # the layers still compute in 16 bits
    exact = (hidden.float() @ base.lm_head.weight.float().T)[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused = model(input_ids=ids, labels=ids, fused_lm_head=True)
    torch.testing.assert_close(fused.log_probs[0], exact, rtol=1e-5, atol=1e-5)
    assert (head_16 - exact).abs().max() > 1e-4
    assert fused.entropy is not None
    torch.testing.assert_close(base(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0], exact)


def test_gradients_reach_the_adapter():
    model = policy()
    use_float32_head(model, 0.7, ("log_probs", "entropy"))
    ids = torch.arange(2, 22)[None]
    model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs.sum().backward()
    gradients = [p.grad for name, p in model.named_parameters() if "lora_B" in name]
    assert gradients
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_an_adapted_head_is_refused():
    with pytest.raises(ConfigurationError, match="lora_target_modules"):
        use_float32_head(policy(("lm_head",), tied=False), 1.0, ("log_probs",))
