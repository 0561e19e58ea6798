# Another Python: make run PYTHON=python3.12
SCALES = long fast imagenet wide wide-resnet best gpu
.PHONY: help run $(SCALES) test quick browser soak fuzz bench study study-smoke lab lint format publish clean
PYTHON ?= python3
BIN = .venv/bin

help:  ## this list
	@sed -n 's/^$$(SCALES):/$(SCALES):/; /^[a-z]/s/:.*  ## /: /p' Makefile

run: .venv/run  ## the three notebooks, top to bottom, at their defaults
	$(BIN)/python -m tools.run $(if $(DATASET),--dataset $(DATASET)) $(ARGS)

$(SCALES): .venv/run  ## the same at a named scale: recipes.toml
	$(BIN)/python -m tools.run $@ $(if $(DATASET),--dataset $(DATASET)) $(ARGS)

test: .venv/dev  ## all tests
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

quick: .venv/dev  ## the tests that take no more than a second or so each
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "not slow" $(ARGS)

browser: .venv/dev  ## notebooks in Jupyter Lab, driven by the system's Chromium
	$(BIN)/python -m pytest tests/browser.py $(ARGS)

soak: .venv/dev  ## twenty kill -9 in a row, for the GAN and the classifier
	KILLS=20 $(BIN)/python -m pytest -s tests/test_interruptions.py tests/test_gan.py -k killed

fuzz: .venv/dev  ## 3,000 damaged or made-up files
	CASES=500 $(BIN)/python -m pytest tests/test_fuzz.py

bench: .venv/bench  ## training speed against plain PyTorch, to runs/bench
	$(BIN)/python -m tools.bench $(ARGS)

study: .venv/run  ## what is missing of docs/study.md's runs; it may be stopped and continues
	$(BIN)/python -m tools.study $(ARGS)

study-smoke: .venv/run  ## a few steps of one arm of each kind
	$(BIN)/python -m tools.study --smoke

lab: .venv/run  ## Jupyter in the browser
	$(BIN)/python -m jupyter lab notebooks

lint: .venv/dev  ## ruff, notebooks included
	$(BIN)/python -m ruff check . && $(BIN)/python -m ruff format --check .

format: .venv/dev
	$(BIN)/python -m ruff check --fix . && $(BIN)/python -m ruff format .

publish: .venv/run  ## this machine's runs on CIFAR-100 to results/, notebooks/ and the README
	$(BIN)/python -m tools.publish $(ARGS)

clean:
	rm -rf .venv

.venv/run: requirements.txt
	@$(PYTHON) -c "import sys; (3, 11) <= sys.version_info[:2] <= (3, 13) or sys.exit('Python 3.11, 3.12 or 3.13 is needed: make run PYTHON=python3.13')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/dev: requirements-dev.txt .venv/run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

.venv/bench: requirements-bench.txt .venv/run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	touch $@
