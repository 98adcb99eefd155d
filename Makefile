# make study          environment, then runs/demo.yaml end to end, to runs/demo/report/index.html
# make study STUDY=x  the same for runs/x.yaml
# make test           environment, then every test
PYTHON ?= python3
VENV   ?= .venv
STUDY  ?= demo
BIN    := $(VENV)/bin

.PHONY: env study test test-slurm unit notebooks stored lab lock clean
env: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

study: env
	$(BIN)/fgkd run runs/$(STUDY).yaml

test: env
	$(BIN)/python -m pytest

unit: env
	$(BIN)/python -m pytest tests/unit

notebooks: env
	$(BIN)/python -m pytest tests/test_notebooks.py notebooks

# Run the notebooks in their order at their defaults and store their outputs without times and paths, as they are committed.
stored: env
	rm -rf build/stored && mkdir -p build/stored
	FGKD_RUNS=$(CURDIR)/build/stored $(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.kernel_name=python3 notebooks/*.ipynb
	$(BIN)/nbstripout --keep-output --keep-count --keep-id \
	  --extra-keys "metadata.papermill cell.metadata.papermill cell.metadata.execution metadata.language_info.version" notebooks/*.ipynb

# The smoke study through a Slurm of one node that is installed (as root, from Debian's packages) and started for it.
test-slurm: env
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock "$$(sed -n 's/^slurm = \["\(.*\)"\]/\1/p' pyproject.toml)"
	FGKD_TEST_SLURM=1 $(BIN)/python -m pytest -s tests/test_slurm.py

lab: env
	$(BIN)/jupyter lab notebooks

# Resolve pyproject.toml anew (needs the registry; the three torch packages move together).
lock: env
	mkdir -p build && $(BIN)/python -m pip install --quiet uv
	printf 'torch==2.15.0\ntorchvision==0.29.2\ntimm==1.0.31\nsetuptools\n' | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
	  --extra notebooks --extra engine --extra test --no-annotate --no-header --upgrade pyproject.toml - -o build/lock
	{ head -1 requirements.lock; cat build/lock; } > build/new && mv build/new requirements.lock

clean:
	rm -rf $(VENV) build *.egg-info
