# Two commands on a fresh machine: `make demo` and `make test`. Needs Python 3.11 or newer and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Plain pip, because constraints.txt pins the CPU build of torch that pip finds.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
CORE := $(VENV)/.core
ALL := $(VENV)/.all

.PHONY: setup demo test test-all lint bench smoke-studies wandb-demo lab docs clean

# Two installs: what studies need, and on top of it everything that tests, notebooks and docs need. The kernels need
# torch alone, so they are compiled while the rest is installed.
setup: $(ALL)

$(CORE): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Python 3.11 or newer is needed, this is {sys.version}"'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(INSTALL) torch
	PYTHONPATH=src $(BIN)/python -c 'from dsv2.kernels.cpu.library import available; available()' & \
	$(INSTALL) --editable . && wait
	touch $@

$(ALL): $(CORE)
	$(INSTALL) --editable '.[all]'
	touch $@

demo: $(CORE)
	$(BIN)/python -m ablations.run sweep=balance_losses scale=smoke

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n 2 -m 'not slow'

test-all: lint
	$(BIN)/pytest -n 2

# Under 10 minutes on 2 cores.
bench: setup
	$(BIN)/python -m benchmarks.bench

# Every study planned at every scale and run at smoke; about 25 minutes on 2 cores.
smoke-studies: setup
	$(BIN)/python -m benchmarks.smoke_studies

# A study as offline W&B runs, and the last of them read back; `wandb sync` uploads them once there is a key.
wandb-demo: setup
	$(BIN)/python -m ablations.run sweep=routing_collapse scale=smoke logger.wandb.mode=offline
	$(BIN)/wandb leet inspect --summary "$$(ls -td runs/routing_collapse/smoke/trials/*/wandb/offline-run-*/*.wandb | head -1)"

# Copies, which git ignores: running a notebook changes its file. A copy that is there is kept; delete it for a new one.
lab: setup
	mkdir -p lab
	for path in notebooks/*.ipynb; do test -e "lab/$${path##*/}" || cp "$$path" lab; done
	DSV2_RUNS=$${DSV2_RUNS:-$(CURDIR)/runs} $(BIN)/jupyter lab lab $(if $(filter 0,$(shell id -u)),--allow-root)

# The site, in site/; any warning ends it.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) runs site
