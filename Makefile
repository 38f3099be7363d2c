# Two commands do all: `make demo` and `make test`. Both make their own environment in .venv from pyproject.toml.
PYTHON ?= python3
DEMO ?= demo
BIN := .venv/bin
RUN := $(DEMO)/run

export HF_HUB_OFFLINE = 1
# Threads that wait asleep: a little slower on idle cores, several times quicker where something else runs.
export OMP_WAIT_POLICY = PASSIVE

.PHONY: demo test slow bench clean

demo: .venv/demo.stamp
	$(BIN)/python -m dept_vl.easy_vqa --output $(DEMO)/data
	$(BIN)/python -m dept_vl.extract --images $(DEMO)/data/images --output $(DEMO)/features --features easy_vqa
	$(BIN)/python -m dept_vl.train --task vqa --recipe easy_vqa \
		--data $(DEMO)/data --features $(DEMO)/features --output $(RUN)
	$(BIN)/python -m dept_vl.evaluate --run $(RUN) --split test
	$(BIN)/python -m dept_vl.report --run $(RUN) --split test --images $(DEMO)/data/images

test: .venv/dev.stamp
	$(BIN)/python -m pytest -n 2 --dist loadfile

slow: .venv/dev.stamp
	$(BIN)/python -m pytest -m slow

bench: .venv/dev.stamp
	$(BIN)/python -m dept_vl.bench store
	$(BIN)/python -m dept_vl.bench train --workloads glue,vl --output bench/train --plots
	$(BIN)/python -m dept_vl.bench infer --output bench/infer --plots
	$(BIN)/python -m dept_vl.bench serve --adapters 16

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo.stamp: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[demo]"
	touch $@

.venv/dev.stamp: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@ .venv/demo.stamp

clean:
	rm -rf .venv $(DEMO) build dist
