# The two commands a newcomer needs are `make demo` and `make test`; both work on a fresh clone.
# `make check` is for daily work: about a minute.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# versions of packages; CONSTRAINTS=/dev/null takes the newest
CONSTRAINTS ?= constraints.txt
# what is installed: what a run needs; tests, lint and notebooks too
READY := $(VENV)/.ready
INSTALLED := $(VENV)/.installed

# a chapter goes to the next free process, other tests go by file (tests/conftest.py)
PYTEST := $(BIN)/python -m pytest -q --numprocesses 2 --dist loadgroup --no-loadscope-reorder

.PHONY: demo test test-browser check lint notebooks course docs results bench gpu-pack gpu faults release-check clean

demo: $(READY)  ## train the miniature GPT-2 on real text messages and try it (half a minute)
	@$(BIN)/gpt2-classifier demo

test: $(INSTALLED) lint  ## every check, offline (about seven minutes on two cores)
	$(PYTEST)

test-browser: $(VENV)/.browser  ## the page of `serve` in Chromium (Debian: apt-get install chromium; or CHROMIUM=path)
	$(BIN)/python -m pytest -q tests/browser

$(VENV)/.browser: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[browser]"
	@touch $@

check: $(INSTALLED) lint  ## what is quick: lint, types and the tests that train nothing large
	$(PYTEST) -m "not slow"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(READY): pyproject.toml constraints.txt
	@echo "installing PyTorch and what else a run needs into $(VENV), once: this may take minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable .
	@touch $@

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable ".[test,lint]"
	@touch $(READY) $@

notebooks: $(INSTALLED)  ## chapters/notebooks from the chapter scripts, executed (two minutes)
	$(BIN)/python chapters/build.py

course: $(INSTALLED)  ## run every chapter as a script, one after another, and say how long each took
	$(BIN)/python chapters/run_all.py

docs: $(VENV)/.docs  ## the site of docs/ in build/site, offline; a link that leads nowhere is an error
	$(BIN)/python docs/site.py
	$(BIN)/zensical build --strict --clean --config-file mkdocs.yml

$(VENV)/.docs: $(READY)
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable ".[docs]"
	@touch $@

results: $(INSTALLED)  ## measure every number of the documentation again (hours; DATA=folder; can be resumed)
	$(BIN)/python benchmarks/results.py --data $(DATA)

bench: $(INSTALLED)  ## only those of speed and memory (about an hour); needs OpenAI's vocabulary
	$(BIN)/python benchmarks/results.py --only load finetune second-run predict scale scale-long precision tasks \
		heads probes next-token own-loop processes

# the folder of the data sets that do not ship with the package
DATA ?= ../shared/data

# `make gpu` on a machine with an NVIDIA card, or on this one: make gpu DEVICE=cpu SMALL=1 (docs/how-to/gpu.md);
# make gpu STAGES="compare qlora" runs only these stages
DEVICE ?= cuda
OUT ?= runs/gpu
PACK ?= build/gpu-pack$(if $(SMALL),-small)
PACK_PYTHON ?= 3.12
PACK_MB ?= 60
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
SCORED := data/sms_spam/SMSSpamCollection $(wildcard $(addprefix ../shared/data/,*/*.csv */*.conll */*.annotated))
gpu gpu-pack: export PYTHONPATH := $(CURDIR):$(CURDIR)/benchmarks

gpu-pack: $(INSTALLED)  ## what `make gpu` needs in addition to a checkout, PyTorch and numpy, in build/gpu-pack
	$(BIN)/python benchmarks/gpu/pack.py --out $(PACK) --largest $(PACK_MB) --python $(PACK_PYTHON) \
		--exclude $(SCORED) $(PACK_OPTIONS)

gpu:  ## nine minutes on one NVIDIA card: compare with the CPU, measure speed, pretrain
	$(if $(SMALL),$(GPU_PYTHON) benchmarks/gpu/pack.py --small --out $(PACK))
	$(GPU_PYTHON) benchmarks/gpu/run.py --device $(DEVICE) --pack $(PACK) --out $(OUT) $(if $(SMALL),--small) \
		$(if $(STAGES),--stages $(STAGES))

faults: $(INSTALLED)  ## the long campaigns of kills, changed files and odd texts (about half an hour)
	$(BIN)/python tests/campaigns/faults.py

release-check: $(INSTALLED) $(VENV)/.release  ## a wheel and an sdist in dist/, and checks of both; nothing is uploaded
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	$(PYTEST) tests/architecture/test_distribution.py

$(VENV)/.release: $(READY)
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable ".[release]"
	@touch $@

clean:
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache .mypy_cache
