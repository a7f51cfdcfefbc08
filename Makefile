# make demo: an environment of its own, then one whole training run on synthetic faces with its score and pictures.
# make test: the same environment, then the tests.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Compiled on installation, so that no import has to do it (importing Lightning uncompiled takes three times as long).
INSTALL := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Property tests see the same cases each time; HYPOTHESIS_PROFILE=explore looks for new ones.
# Tests run in two processes, of one thread each (tests/conftest.py).
JOBS   ?= 2

.PHONY: setup demo test test-slow lint format docs show-augmentations benchmark clean help

help:
	@sed -n '1,2s/^# //p' Makefile; grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/'

setup: $(VENV)/.installed ## the environment in .venv

# trackers alone: its opencv-python would be laid over opencv-python-headless, and needs libGL.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fanet_lightning needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[dev]'
	$(INSTALL) --no-deps 'trackers>=2.6,<3'
	touch $@

demo: setup ## train level=3 hl=true on synthetic faces, score it, draw it (minutes on two cores)
	$(BIN)/python -m fanet_lightning.train level=3 hl=true out=outputs/demo overwrite=true $(ARGS)

test: setup ## everything but the slow tests
	$(BIN)/python -m pytest -m 'not slow' -n $(JOBS) --dist loadfile $(ARGS)

test-slow: setup ## the slow tests: trainings, kills, DDP, the browser
	$(BIN)/python -m pytest -m slow -n $(JOBS) --dist loadfile $(ARGS)

lint: setup ## ruff, mypy strict, the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --verbose

format: setup ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup ## the documentation, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

show-augmentations: setup ## a grid of augmented training images
	$(BIN)/fanet show augmentations $(ARGS)

benchmark: setup ## every benchmark that needs no data set, one after the other
	for script in $(filter-out %/large_photos.py %/video_tracking.py, $(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean: ## what was built, not what was trained
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
