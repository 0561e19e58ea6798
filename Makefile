# To use another Python: make run PYTHON=python3.12
RECIPES = long tenth fast imagenet wide wide-resnet best gpu
.PHONY: help run $(RECIPES) draw classify test quick browser soak fuzz bench study study-smoke lab lint format publish clean
PYTHON ?= python3
BIN = .venv/bin

help:  ## show this list
	@sed -n 's/^$$(RECIPES):/$(RECIPES):/; /^[a-z]/s/:.*  ## /: /p' Makefile

run: .venv/run  ## run the three notebooks from top to bottom, with their default parameters
	$(BIN)/python -m tools.run $(if $(DATASET),--dataset $(DATASET)) $(ARGS)

$(RECIPES): .venv/run  ## run notebooks with a recipe from recipes.toml
	$(BIN)/python -m tools.run $@ $(if $(DATASET),--dataset $(DATASET)) $(ARGS)

draw: .venv/run  ## draw images with the published generator: make draw CLASS=sunflower
	$(BIN)/python -m tools.draw $(if $(CLASS),"$(CLASS)") $(ARGS)

classify: .venv/run  ## classify a picture with the published network: make classify PICTURE=cat.jpg
	$(BIN)/python -m tools.classify $(if $(PICTURE),"$(PICTURE)") $(ARGS)

test: .venv/dev  ## run all tests
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

quick: .venv/dev  ## run only the fast tests (about a second each)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "not slow" $(ARGS)

browser: .venv/dev  ## test the notebooks in Jupyter Lab, with the system's Chromium
	$(BIN)/python -m pytest tests/browser.py $(ARGS)

soak: .venv/dev  ## kill and resume the training of the classifier and of the GAN, twenty times each
	KILLS=20 $(BIN)/python -m pytest -s tests/test_interruptions.py tests/test_gan.py -k killed

fuzz: .venv/dev  ## test with 500 damaged or made-up files of each kind
	CASES=500 $(BIN)/python -m pytest tests/test_fuzz.py

bench: .venv/bench  ## compare training speed with plain PyTorch, and write the result to runs/bench
	$(BIN)/python -m tools.bench $(ARGS)

study: .venv/run  ## train the missing runs of docs/study.md; can be stopped and resumed
	$(BIN)/python -m tools.study $(ARGS)

study-smoke: .venv/run  ## try the study with a few steps of one arm of each kind
	$(BIN)/python -m tools.study --smoke

lab: .venv/run  ## open the notebooks in Jupyter Lab
	$(BIN)/python -m jupyter lab notebooks

lint: .venv/dev  ## check all code with ruff, including the notebooks
	$(BIN)/python -m ruff check . && $(BIN)/python -m ruff format --check .

format: .venv/dev
	$(BIN)/python -m ruff check --fix . && $(BIN)/python -m ruff format .

publish: .venv/run  ## copy this machine's CIFAR-100 runs to results/, notebooks/ and the README
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
