"""Packed forward passes against padded ones, for every family of models that the ladder packs."""

import pytest
import torch
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from trl_r1.exceptions import ConfigurationError
from trl_r1.modeling.attention import Attention, choose_attention, enable_packing, unused_mask
from trl_r1.modeling.obstacles import why_not_packable
from trl_r1.modeling.packing import Span, best_fit, pack, spans
from trl_r1.modeling.probe import why_packing_fails

SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
# Gemma-3 and this Qwen2 have a layer whose tokens see 6 tokens only, fewer than most sequences have.
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "qwen2_window": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "gemma3_text": {"head_dim": 32, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
}
PROMPT, COMPLETION = 8, 24


def build(family, device="cpu", dtype=torch.float32, attention=None):
    from transformers import AutoConfig

    torch.manual_seed(0)
    config = AutoConfig.for_model(family.removesuffix("_window"), **SIZES, **FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(device, dtype).eval()
    for parameter in model.parameters():  # random initialisation alone gives nearly uniform logits
        parameter.data.mul_(2.0)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    if attention:
        enable_packing(model, choose_attention(model, torch.device(device), dtype, attention))
    return model


def ragged(rows=9, device="cpu", seed=0):
    """Tokens and mask of shape (rows, PROMPT + COMPLETION): prompts padded left, completions right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 128, (rows, PROMPT + COMPLETION), generator=generator)
    prompts = torch.randint(2, PROMPT + 1, (rows, 1), generator=generator)
    completions = torch.randint(1, COMPLETION + 1, (rows, 1), generator=generator)
    completions[0] = COMPLETION
    columns = torch.arange(PROMPT + COMPLETION)
    mask = ((columns >= PROMPT - prompts) & (columns < PROMPT + completions)).long()
    return ids.to(device), mask.to(device)


def padded_logps(model, ids, mask):
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :PROMPT] = -100
    outputs = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    return outputs.log_probs[:, -COMPLETION:]


def packed_logps(model, ids, mask, groups=None, multiple_of=1):
    where = spans(mask)
    logps = torch.zeros(ids.size(0) * COMPLETION, device=ids.device)
    for rows in groups or [range(ids.size(0))]:
        packed = pack(ids, list(rows), where, PROMPT, multiple_of)
        outputs = model(attention_mask=unused_mask(ids.device), fused_lm_head=True, **packed.model_inputs)
        logps = packed.scatter(outputs.log_probs, logps)
    return logps.view(ids.size(0), COMPLETION)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("multiple_of", [1, 64])
def test_packed_equals_padded_in_float32(family, multiple_of):
    ids, mask = ragged()
    model, packing = build(family), build(family, attention="sdpa")
    weights = torch.randn(ids.size(0), COMPLETION, generator=torch.Generator().manual_seed(1))
    expected = padded_logps(model, ids, mask)
    ours = packed_logps(packing, ids, mask, multiple_of=multiple_of)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    stock = gradients(model, (expected * weights).sum())
    for name, gradient in gradients(packing, (ours * weights).sum()).items():
        atol = 1e-5 * float(stock[name].abs().max())
        torch.testing.assert_close(gradient, stock[name], rtol=1e-5, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def test_a_4bit_model_with_an_adapter_packs_exactly(tmp_path):
    pytest.importorskip("bitsandbytes")
    from peft import LoraConfig, get_peft_model
    from transformers import BitsAndBytesConfig

    build("qwen3").save_pretrained(tmp_path)
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    ids, mask = ragged()
    found = []
    for attention, function in ((None, padded_logps), ("sdpa", packed_logps)):
        base = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=quantisation, dtype=torch.float32)
        add_fused_lm_head(base, outputs=("log_probs", "entropy"))
        if attention:
            enable_packing(base, choose_attention(base, torch.device("cpu"), torch.float32, attention))
        torch.manual_seed(1)
        model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
        logps = function(model, ids, mask)
        logps.sum().backward()
        found.append((logps.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=0, atol=1e-5)
    assert found[0][1].keys() == found[1][1].keys()
    scale = max(float(g.abs().max()) for g in found[0][1].values())
    assert scale > 0
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-5, atol=1e-5 * scale)


def test_a_packed_model_still_does_padded_passes_and_generates():
    ids, mask = ragged()
    model, packing = build("qwen3"), build("qwen3", attention="sdpa")
    torch.testing.assert_close(padded_logps(packing, ids, mask), padded_logps(model, ids, mask), rtol=0, atol=1e-6)
    prompt = {"input_ids": ids[:, :PROMPT], "attention_mask": mask[:, :PROMPT], "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(packing.generate(**prompt), model.generate(**prompt))


def test_grouping_does_not_matter():
    ids, mask = ragged()
    model = build("qwen3", attention="sdpa")
    one = packed_logps(model, ids, mask)
    many = packed_logps(model, ids, mask, groups=[[3, 1], [0], [8, 2, 4], [5, 6, 7]])
    torch.testing.assert_close(many, one, rtol=0, atol=1e-5)


def test_a_sequence_sees_nothing_of_its_neighbours():
    ids, mask = ragged()
    model = build("gemma3_text", attention="sdpa")
    with torch.no_grad():
        before = packed_logps(model, ids, mask)
        changed = ids.clone()
        changed[4] = (changed[4] + 7) % 120 + 2
        after = packed_logps(model, changed, mask)
    others = [row for row in range(ids.size(0)) if row != 4]
    assert torch.equal(after[others], before[others])
    assert not torch.equal(after[4], before[4])


def test_spans_and_scored_tokens():
    _, mask = ragged()
    where = spans(mask)
    assert [span.length for span in where] == mask.sum(dim=1).tolist()
    assert [span.scored(PROMPT) for span in where] == mask[:, PROMPT:].sum(dim=1).tolist()
    assert spans(torch.zeros(1, 4)) == [Span(0, 0)]
    with pytest.raises(ValueError, match="Row 0 has a hole"):
        spans(torch.tensor([[1, 0, 1]]))


def test_a_row_without_completion_scores_nothing():
    ids, mask = ragged(rows=3)
    mask[1, PROMPT:] = 0  # TRL masks truncated completions this way
    logps = packed_logps(build("llama", attention="sdpa"), ids, mask)
    assert logps[1].abs().sum() == 0
    assert (logps[[0, 2]] * mask[[0, 2], PROMPT:]).abs().sum() > 0


def test_best_fit_fills_bins():
    lengths = [50, 30, 30, 20, 20, 20, 10, 120]
    bins = best_fit(lengths, 60)
    assert sorted(i for items in bins for i in items) == list(range(len(lengths)))
    assert [7] in bins  # longer than the budget: alone
    others = [items for items in bins if items != [7]]
    assert all(sum(lengths[i] for i in items) <= 60 for items in others)
    assert len(others) == 3  # 180 tokens in bins of 60


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "linear_attention"),
        ({"block_types": ["recurrent", "attention"]}, "recurrent"),
        ({"layers_block_type": ["mamba", "attention"]}, "mamba"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "dynamic"),
    ],
)
def test_what_cannot_be_packed_says_why(change, reason):
    model = build("qwen3")
    for name, value in change.items():
        setattr(model.config, name, value)
    assert reason in why_not_packable(model)
    chosen = choose_attention(model, torch.device("cuda"), torch.bfloat16)
    assert chosen.kind == "padded"
    assert reason in chosen.reason
    with pytest.raises(ConfigurationError, match="cannot be used"):
        choose_attention(model, torch.device("cpu"), torch.float32, "sdpa")


@pytest.mark.parametrize("family", ["granite_swa", "granitemoe_swa"])
def test_attention_sinks_are_not_packed(family):
    from transformers import AutoConfig

    config = AutoConfig.for_model(family, **SIZES)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    assert "attention sinks" in why_not_packable(model)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_packs_passes_the_trial_undisturbed(family, dtype):
    model = build(family, dtype=dtype).train()
    model.model.layers[0].eval()  # as frozen layers may be
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    assert why_packing_fails(model, Attention("sdpa", "asked for"), dtype) is None
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.config._attn_implementation == "sdpa"


def test_layers_that_lose_the_bounds_of_sequences_fail_the_trial_and_are_refused():
    from transformers import NemotronConfig, NemotronForCausalLM

    model = NemotronForCausalLM(NemotronConfig(**SIZES)).eval()
    assert why_not_packable(model) is None
    asked = Attention("sdpa", "asked for")
    assert "without cu_seq_lens_q" in why_packing_fails(model, asked, torch.float32)
    enable_packing(model, asked)
    ids, mask = ragged()
    inputs = pack(ids, [0, 1], spans(mask), PROMPT).model_inputs
    del inputs["shift_labels"]
    with pytest.raises(RuntimeError, match="A packed row reached attention without cu_seq_lens_q"):
        model(attention_mask=unused_mask(ids.device), **inputs)
    model(input_ids=ids, attention_mask=mask)  # padded rows are no concern of it
    model.generate(ids[:1, :PROMPT], max_new_tokens=2, do_sample=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_that_layers_carry_fails_the_trial(dtype):
    model = build("qwen3", dtype=dtype)
    layer = model.model.layers[0]

    def mixed(module, args, output):  # as a recurrent layer would, with no entry in the configuration
        return output.cumsum(dim=1) / torch.arange(1, output.size(1) + 1, dtype=output.dtype)[:, None]

    layer.register_forward_hook(mixed)
    assert "sees its neighbour" in why_packing_fails(model, Attention("sdpa", "asked for"), dtype)


def test_positions_that_count_neighbours_fail_the_trial():
    model = build("llama")
    model.model.embed_tokens.register_forward_hook(
        lambda module, args, output: output + torch.arange(output.size(1))[None, :, None] * 0.1
    )
    assert "differ from the same rows" in why_packing_fails(model, Attention("sdpa", "asked for"), torch.float32)


def test_ladder():
    model = build("qwen3")
    assert choose_attention(model, torch.device("cpu"), torch.float32).kind == "padded"
    assert choose_attention(model, torch.device("cuda"), torch.float32).kind == "padded"
    assert choose_attention(model, torch.device("cuda"), torch.bfloat16).kind in ("varlen", "flash_attention_2")
    assert choose_attention(model, torch.device("cpu"), torch.float32, "none").kind == "padded"
    with pytest.raises(ConfigurationError, match="needs a CUDA device and half precision"):
        choose_attention(model, torch.device("cpu"), torch.float32, "varlen")
    with pytest.raises(ConfigurationError, match="Unknown packing 'dense'"):
        choose_attention(model, torch.device("cpu"), torch.float32, "dense")


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_is_as_close_to_float32_as_padded_in_bfloat16(family):
    ids, mask = ragged(rows=64, device="cuda")
    counted = mask[:, PROMPT:].bool()
    weights = torch.randn(64, COMPLETION, generator=torch.Generator().manual_seed(1)).cuda()

    def run(model, function):
        logps = function(model, ids, mask)
        return logps.detach().float()[counted], gradients(model, (logps * weights * counted).sum())

    exact, exact_gradients = run(build(family, "cuda"), padded_logps)
    stock, stock_gradients = run(build(family, "cuda", torch.bfloat16), padded_logps)
    ours, our_gradients = run(build(family, "cuda", torch.bfloat16, attention="varlen"), packed_logps)
    assert (ours - exact).abs().mean() <= 1.1 * (stock - exact).abs().mean()

    def error(found):
        return sum(float((found[n].float() - g).square().sum()) for n, g in exact_gradients.items()) ** 0.5

    assert error(our_gradients) <= 1.1 * error(stock_gradients)


@pytest.mark.gpu
def test_a_sequence_sees_nothing_of_its_neighbours_on_a_gpu():
    ids, mask = ragged(rows=64, device="cuda")
    model = build("qwen3", "cuda", torch.bfloat16, attention="varlen")
    with torch.no_grad():
        before = packed_logps(model, ids, mask)
        changed = ids.clone()
        changed[4] = (changed[4] + 7) % 120 + 2
        after = packed_logps(model, changed, mask)
    others = [row for row in range(64) if row != 4]
    assert torch.equal(after[others], before[others])
