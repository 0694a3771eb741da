# Every target does its own set-up in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := build/demo

.PHONY: demo test test-slow lint bench clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)  ## train, export, profile, select on real data: the whole path
	rm -rf $(DEMO)
	$(BIN)/sortednet train --family resnet --data mnist-5k --out $(DEMO)/run \
		--set channels=[8,16] --set blocks=[4,4] --set multiple=1 --epochs 12 --batch-size 32
	$(BIN)/sortednet export $(DEMO)/run --out $(DEMO)/bundle
	$(BIN)/sortednet profile $(DEMO)/bundle --threads 1
	$(BIN)/sortednet verify $(DEMO)/bundle
	$(BIN)/sortednet report $(DEMO)/bundle --out $(DEMO)/report.html
	$(BIN)/sortednet inspect $(DEMO)/bundle
	$(BIN)/sortednet select $(DEMO)/bundle --min-accuracy 0.93 --objective latency
	@echo
	@echo "The report: $(DEMO)/report.html. Try next:"
	@echo "  $(BIN)/sortednet select $(DEMO)/bundle --latency-ms 0.1"
	@echo "  $(BIN)/sortednet select $(DEMO)/bundle --min-accuracy 0.95 --objective latency"
	@echo "  $(BIN)/sortednet select $(DEMO)/bundle --battery 15 --discharging"
	@echo "  $(BIN)/sortednet serve $(DEMO)/bundle"

test: $(READY)  ## the test suite
	$(BIN)/pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(READY)
	$(BIN)/pytest -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)  ## the quick benchmarks: export, size, latency, overheads
	$(BIN)/python -m benchmarks.path

bench-%: $(READY)  ## one benchmark by name
	$(BIN)/python -m benchmarks.$*

clean:
	rm -rf build $(VENV)
