.PHONY: run long wide pairs scarce gpu test soak fuzz bench parity lab lint format publish clean
PYTHON ?= python3
BIN = .venv/bin

run: .venv/run  ## the three notebooks, top to bottom
	$(BIN)/python -m notebooks.run $(if $(DATASET),--dataset $(DATASET)) $(ARGS)

long: .venv/run  ## a wider GAN for longer, recorded as gan_long: about an hour
	$(BIN)/python -m notebooks.run $(if $(DATASET),--dataset $(DATASET)) --only gan_synthetic_images \
		-p RUN gan_long -p CHANNELS 24 -p EPOCHS 18 -p EMA_MOMENTUM 0.999 $(ARGS)

wide: .venv/run  ## VGG-16 with twice the channels and epochs, recorded as vgg16_wide: a quarter of an hour or more each way
	$(BIN)/python -m notebooks.run $(if $(DATASET),--dataset $(DATASET)) --only vgg16_with_gan \
		-p RUN vgg16_wide -p WIDTH 0.5 -p EPOCHS 24 $(ARGS)

pairs: .venv/run  ## notebook 2's question with two more seeds: how far chance goes
	for seed in 1 2; do \
		$(BIN)/python -m notebooks.run $(if $(DATASET),--dataset $(DATASET)) --only vgg16_with_gan \
			-p RUN vgg16_seed$$seed -p SEED $$seed $(ARGS) || exit 1; \
	done

scarce: .venv/run  ## the same question with a tenth of the real images, to results/<dataset>-0.1: about an hour
	$(BIN)/python -m notebooks.run $(if $(DATASET),--dataset $(DATASET)) -p REAL_FRACTION 0.1 -p EPOCHS 60 \
		-p PATIENCE 60 -p JUDGE_EPOCHS 15 -p AUGMENT True -p CUTMIX 0.5 \
		-p SYNTHETIC_PER_CLASS 45 $(ARGS)

gpu: .venv/run  ## the same question at a GPU's scale, to results/<dataset>-gpu
	$(BIN)/python -m notebooks.run $(if $(DATASET),--dataset $(DATASET)) -p VARIANT gpu $(ARGS)

test: .venv/dev  ## all tests
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

soak: .venv/dev  ## twenty kill -9 in a row, for the GAN and the classifier
	KILLS=20 $(BIN)/python -m pytest -s tests/test_training.py -k killed

fuzz: .venv/dev  ## 3,000 damaged or made-up files
	CASES=500 $(BIN)/python -m pytest tests/test_fuzz.py

bench: .venv/bench  ## training speed against plain PyTorch, to results/bench
	$(BIN)/python -m notebooks.bench $(ARGS)

parity: .venv/run  ## whether what makes it fast costs accuracy, to results/bench
	$(BIN)/python -m notebooks.parity $(ARGS)

lab: .venv/run  ## Jupyter in the browser
	$(BIN)/jupyter lab notebooks

lint: .venv/dev  ## ruff, notebooks included
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: .venv/dev
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

publish: .venv/run  ## executed notebooks back to notebooks/, without real images; their records, bench's and parity's to the README
	$(BIN)/python -m notebooks.run --publish
	$(BIN)/python -m notebooks.bench --publish
	$(BIN)/python -m notebooks.parity --publish

clean:
	rm -rf .venv

.venv/run: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/dev: requirements-dev.txt .venv/run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

.venv/bench: requirements-bench.txt .venv/run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	touch $@
