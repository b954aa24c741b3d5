# `make train` and `make test` set up all they need: a virtual environment in .venv with the pinned packages.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test test-faults ui lint types layers benchmark clean

train: .venv/ready
	$(BIN)/lossy train vae10_digits

ui: .venv/ready
	$(BIN)/lossy serve

test: lint types layers
	$(BIN)/pytest -n 2 --dist worksteal

# What takes too long for every change: fifty random seeds of faults, each kind of outage, each way to stop a training,
# the team service in real containers (those need root and, from Debian: podman runc debootstrap netavark aardvark-dns).
test-faults: .venv/ready
	$(BIN)/pytest -n 2 --dist worksteal -m campaign

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/mypy

layers: .venv/ready
	$(BIN)/lint-imports

benchmark: .venv/ready
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/tracking.py
	$(BIN)/python benchmarks/outbox.py
	$(BIN)/python benchmarks/registry.py
	$(BIN)/python benchmarks/rate_distortion.py
	$(BIN)/python benchmarks/service.py
	$(BIN)/python benchmarks/service_backup.py
	$(BIN)/python benchmarks/scale.py

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,server,dev]'
	touch $@

clean:
	rm -rf .venv
