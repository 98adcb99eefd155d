# make study          environment, then runs/demo.yaml end to end, to runs/demo/report/index.html
# make study STUDY=x  the same for runs/x.yaml
# make test           environment, then every test
# make lint           mistakes, layout and types, in code and notebooks, and the house's own rules
PYTHON ?= python3
VENV   ?= .venv
STUDY  ?= demo
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check
NOTEBOOKS := notebooks/*.ipynb notebooks/solutions/*.ipynb

.PHONY: env study test test-slurm unit lint studies fuzz notebooks stored lab lock clean
env: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; this is " \
	  + sys.version.split()[0] + ". Name another one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --require-hashes -r requirements.lock
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

study: env
	$(BIN)/fgkd run runs/$(STUDY).yaml

# A process a core, eight at most; the tests of a file in one of them.
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test: env
	$(PYTEST)

unit: env
	$(PYTEST) tests/unit

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_house.py tests/unit/test_docstrings.py \
	  tests/unit/test_notebook_style.py

# Whole studies through the engine, faults, a browser, fuzzing: all tests but those of unit and notebooks.
studies: env
	$(PYTEST) tests --ignore tests/unit --ignore tests/test_notebooks.py

# Mutated inputs for as long as one likes: make fuzz SECONDS=3600
SECONDS ?= 60
fuzz: env
	$(BIN)/python tests/fuzz/fuzz.py --seconds $(SECONDS)

notebooks: env
	$(PYTEST) tests/test_notebooks.py notebooks

# Run the notebooks in their order at their defaults and store their outputs without times and paths, as they
# are committed.
stored: env
	rm -rf build/stored && mkdir -p build/stored
	FGKD_RUNS=$(CURDIR)/build/stored $(BIN)/jupyter nbconvert --to notebook --execute --inplace \
	  --ExecutePreprocessor.kernel_name=python3 $(NOTEBOOKS)
	$(BIN)/nbstripout --keep-output --keep-count --keep-id --extra-keys "metadata.papermill \
	  cell.metadata.papermill cell.metadata.execution metadata.language_info.version" $(NOTEBOOKS)

# The smoke study through a Slurm of one node that is installed (as root, from Debian's packages) and started.
test-slurm: env
	FGKD_TEST_SLURM=1 $(BIN)/python -m pytest -s tests/test_slurm.py

lab: env
	$(BIN)/jupyter lab notebooks

# Pin pyproject.toml's packages again, with the hashes of all their files, for Python 3.11 and newer on every
# system. Needs the registry; make lock UPGRADE=--upgrade takes the newest versions, but of these:
TORCH := torch==2.15.0\ntorchvision==0.29.2\ntimm==1.0.31\n
lock: env
	mkdir -p build && $(PIP) uv
	grep -v '^#' requirements.lock > build/lock
	printf '$(TORCH)setuptools\n' | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras \
	  --generate-hashes --no-strip-extras --no-annotate --no-header $(UPGRADE) pyproject.toml - -o build/lock
	{ head -1 requirements.lock; cat build/lock; } > build/new && mv build/new requirements.lock

clean:
	rm -rf $(VENV) build *.egg-info
