# make demo: see it work. make test: what CI runs. make test-faults: kills processes and servers. make test-hostile: an hour of hostile input. Everything is
# installed into .venv; nothing else is touched, but that the tests need a Chromium: where there is none, `make browser` takes Debian's. make test-deepinv:
# the tests of the extra deepinv, in an environment of their own, because deepinv needs a torchvision that fits torch.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: venv browser demo test test-deepinv test-faults test-hostile lint bench clean

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo,test]'
	touch $@

demo: venv
	$(BIN)/python -m benchmarks.demo

browser:
	for name in chromium-headless-shell chromium chromium-browser google-chrome; do \
	  command -v $$name >/dev/null && exit 0; done; \
	apt-get update --quiet && apt-get install --quiet --yes --no-install-recommends chromium-headless-shell

test: lint browser
	$(BIN)/python -m pytest

# a seed to repeat it: make test-hostile SEED=N; the fuzzer's share of `make test` times TIMES is about an hour
SEED ?= $(shell date +%s)
TIMES ?= 90
test-hostile: venv
	@echo "seed $(SEED)"
	FLASHRAY_FUZZ=$(TIMES) $(BIN)/python -m pytest tests/hostile -m "hostile or not hostile" -s \
		--hypothesis-seed=$(SEED) --timeout 7200

test-deepinv: .venv-deepinv/.installed
	.venv-deepinv/bin/python -m pytest tests/deepinv

.venv-deepinv/.installed: pyproject.toml
	test -x .venv-deepinv/bin/python || $(PYTHON) -m venv .venv-deepinv
	.venv-deepinv/bin/python -m pip install --quiet torch==2.14.1 torchvision==0.29.1 deepinv==0.5.0 -e '.[deepinv]' pytest pytest-timeout scikit-image
	touch $@

test-faults: venv
	$(BIN)/python -m pytest -m fault

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: venv
	$(BIN)/python -m benchmarks.speed

clean:
	rm -rf $(VENV) .venv-deepinv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache demo-run
	find flashray benchmarks jobs tests -name __pycache__ -type d -prune -exec rm -rf {} +
