"""Who writes? The engines and samplers that turn prompts into completions.

[`engine`] holds the trainer's colocated vLLM engine; its parts are [`options`] (what is checked and decided before a
weight is loaded), [`weights`] (what is handed over), [`rollout`] (the `LLM` itself) and [`logprobs`] (what is read back).

Outside a trainer a `Sampler` writes ([`base`]). [`config`] holds its settings and `open_sampler`, which opens one of
[`vllm`], [`transformers`] and [`server`]; [`shards`] keeps what it writes across kills, [`progress`] shows how it goes.
"""
