# `make demo` and `make test` each do everything from a bare checkout. `make help` lists the rest.

PYTHON ?= python3
VENV ?= .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
PY := $(BIN)/python

# Large, and needed by gpt_model/harness.py alone.
LM_EVAL := 0.4.13

# A pip index with another build of torch (CPU only, or another CUDA): see "Another build of torch" in the README.
TORCH_INDEX ?=
ifneq ($(TORCH_INDEX),)
.PHONY: $(VENV)/.installed # asked for: install again
endif

# What the demo trains, and where to. Flags are those of pretraining/pretrain_simple.py.
DEMO_RUN ?= runs/demo
DEMO_FLAGS ?=
# What it learns to answer: 600 questions, by heart, which need Muon's large steps and no held-out best.
TUNE_FLAGS ?= --max-examples 600 --epochs 12 --max-minutes 3 --batch-size 8 --optimizer muon --learning-rate 0.02 \
  --other-learning-rate 0.005 --evaluate-every 1000000000 --eval-examples 64 --ask 5 --keep last
DEVICE ?= auto
PROMPTS ?= "The assert statement" "Return a list of" "If the file does not exist," "class"

# Processes that run tests side by side; torch's own threads would only stand in their way.
WORKERS ?= auto

.PHONY: help setup harness demo chat test lint types pytest notebooks format clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.installed ## make .venv with everything pinned (the other targets do it when it is needed)

# The stamp is younger than the pins, or the pins have changed.
$(VENV)/.installed: requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
	  { echo "error: Python 3.11 or newer is needed, and $(PYTHON) is `$(PYTHON) --version 2>&1`: make PYTHON=python3.12 ..."; exit 2; }
	@echo "Installing into $(VENV): some minutes the first time, not again until the pins change"
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(PY) -m pip install --quiet --upgrade pip
ifneq ($(TORCH_INDEX),)
	@$(PY) -m pip install --quiet --force-reinstall --no-deps "$$(grep -o '^torch==[0-9.]*' requirements.txt)" --index-url $(TORCH_INDEX)
endif
	@$(PY) -m pip install --quiet -r requirements.txt -c constraints.txt
	@$(PY) -m pip install --quiet --no-deps --no-build-isolation -e .
	@$(PY) -c "import pathlib; pathlib.Path('$(VENV)/.installed').touch()"

harness: $(VENV)/.installed ## lm-evaluation-harness beside everything else, for gpt_model/harness.py
	@$(PY) -m pip install --quiet "lm-eval==$(LM_EVAL)" -c constraints.txt

demo: $(VENV)/.installed ## text to a model that writes and answers: tokenizer, shards, training, instructions
	@echo "The demo takes about 8 minutes, at most 12 on a slow machine: 10 seconds to read Python's documentation,"
	@echo "5 minutes at most to train on it, 3 at most to learn answers, and the rest to measure and write."
	@echo
	$(PY) working_with_text_data/bytepair_enc/train_tokenizer.py --corpus python-docs --out $(DEMO_RUN)/tokenizer.json
	@echo
	$(PY) pretraining/prepare_data.py --corpus python-docs --tokenizer $(DEMO_RUN)/tokenizer.json --out $(DEMO_RUN)/tokens
	@echo
	$(PY) pretraining/pretrain_simple.py --data $(DEMO_RUN)/tokens --run $(DEMO_RUN) --overwrite --device $(DEVICE) $(DEMO_FLAGS)
	@echo
	$(PY) gpt_model/generate.py --model $(DEMO_RUN)/model --device $(DEVICE) --max-new-tokens 100 --prompt $(PROMPTS)
	@echo
	$(PY) finetuning/instruction/train_instruct.py --model $(DEMO_RUN)/model --run $(DEMO_RUN)/instruct --overwrite --device $(DEVICE) $(TUNE_FLAGS)
	@echo
	$(PY) finetuning/instruction/ask.py --model $(DEMO_RUN)/instruct/model --device $(DEVICE) --examples 5
	@echo
	@echo "Next: make chat, to talk to it in the browser"

CHAT_FLAGS ?=

chat: $(VENV)/.installed ## talk to what you trained, in the browser (after make demo)
	$(BIN)/chainlit run chat_ui/app.py $(CHAT_FLAGS)

test: lint types pytest ## style, types and all tests

lint: $(VENV)/.installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(VENV)/.installed
	$(PY) -m mypy

pytest: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist worksteal

notebooks: $(VENV)/.installed ## execute all notebooks and write them with their outputs
	$(PY) utils/notebooks.py

format: $(VENV)/.installed ## write the code in the project's style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean: ## remove what the demo wrote
	rm -rf $(DEMO_RUN)
