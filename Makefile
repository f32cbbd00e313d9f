# make run    executes the notebooks: DATASET=known-truth (default), ml-1m, beauty, … or a file, whose
#             path starts here; WITH="min_user=3 seed=2" sets parameters
# make lab    opens them in JupyterLab
# make site   the same as pages for readers without a kernel, with every explorer: outputs/site
# make slides   the marked cells of the site's notebooks as decks for the classroom: outputs/slides
# make exercises   notebooks/exercises from notebooks/solutions
# make bench  speed and memory beside the literal form: benchmarks/results.csv; make bench-gpu: the
#             same and a whole training on CUDA, with the PYTHON that has torch: results-cuda.csv
# make evidence   trains what outputs/reference/queue.toml asks for and is not there, then writes the
#             README's tables, docs/reproduction.md and the picture from it: BUDGET=540 for so many
#             seconds, the next call goes on; STATUS=1 tells what is left
# make interop   RecTools and implicit on MovieLens-1M, diagnosed here, in an environment of their own
#             (.venv-interop); not part of make test: DATASET=path of ml-1m.txt, ROUNDS=5 of training
# make bench-peers   the same loss by RecTools and as it is usually written, beside ours, in that
#             environment: benchmarks/peers.csv; BUDGET=1800 seconds of training for each
# make fuzz   random files, tables and folders, N = 20000 of each kind; make test tries a few
# make test   runs every test, the notebooks included; make check: style, types, clean notebooks
# PYTHON=python3.12 chooses the interpreter, TORCH="torch --index-url …" another build of torch.
DATASET ?= known-truth
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

ifndef GSAS_LAB_DATA
ifneq ($(wildcard ../shared/data),)
export GSAS_LAB_DATA := $(abspath ../shared/data)
endif
endif

N ?= 20000

.PHONY: run lab site slides exercises bench bench-gpu bench-peers evidence test fuzz interop check

# As it was typed, $ and quotes included: the shell reads it from the environment.
run site: export GSAS_LAB_DATASET = $(value DATASET)

run: $(READY)
	@$(BIN)/python -m gsas_lab notebooks --dataset="$$GSAS_LAB_DATASET" $(WITH:%=-p %)

# Kernels start in the notebooks' folder, where a relative folder would be another one.
lab: $(READY)
	@for name in RUNS DATA CACHE; do \
		eval "folder=\$$GSAS_LAB_$$name"; \
		case "$$folder" in ""|/*|"~"*) ;; *) export "GSAS_LAB_$$name=$$PWD/$$folder";; esac; \
	done; \
	exec $(BIN)/jupyter lab --ip=127.0.0.1 --ServerApp.root_dir="$(CURDIR)" \
		--LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb

site: $(READY)
	@$(BIN)/python -m gsas_lab site --dataset="$$GSAS_LAB_DATASET"

slides: outputs/site/index.html
	@$(BIN)/python -m gsas_lab slides

# Pages that are older than what they are made of are made again; whatever data set they are of.
outputs/site/index.html: $(READY) $(wildcard notebooks/*.ipynb gsas_lab/*.py gsas_lab/*/*.py \
		outputs/reference/*/*.csv outputs/reference/*/*/*.csv)
	@$(MAKE) --no-print-directory site

exercises: $(READY)
	@$(BIN)/python -m gsas_lab exercises

bench: $(READY)
	$(BIN)/python benchmarks/bench.py

bench-gpu:
	PYTHONPATH="$(CURDIR)" $(PYTHON) benchmarks/bench.py --device cuda

evidence: $(READY)
	$(BIN)/python -m gsas_lab queue $(BUDGET:%=--budget %) $(STATUS:1=--status)
	$(if $(STATUS),,$(BIN)/python -m gsas_lab documents)

test: $(READY)
	$(BIN)/python -m pytest --nbval-lax --nbval-current-env tests notebooks

fuzz: $(READY)
	$(BIN)/python -m pytest tests/fuzz --fuzz $(N)

# Its file's time says which versions are installed, as that of READY below.
INTEROP := .venv-interop
ROUNDS ?= 5
ML_1M = $(if $(filter %.txt,$(DATASET)),$(DATASET),$(or $(GSAS_LAB_DATA),data)/ml-1m.txt)

interop: $(INTEROP)/ready
	PYTHONPATH="$(CURDIR)" $(INTEROP)/bin/python tests/interop/implicit_als.py "$(ML_1M)"
	PYTHONPATH="$(CURDIR)" $(INTEROP)/bin/python tests/interop/rectools_gbce.py "$(ML_1M)" $(ROUNDS)

bench-peers: $(INTEROP)/ready
	PYTHONPATH="$(CURDIR)" $(INTEROP)/bin/python benchmarks/peers.py $(BUDGET)

$(INTEROP)/ready: tests/interop/requirements.txt
	$(PYTHON) -m venv $(INTEROP)
	$(INTEROP)/bin/python -m pip install -r tests/interop/requirements.txt
	@touch $@

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/nbstripout --verify --keep-id --keep-count notebooks/*.ipynb notebooks/*/*.ipynb

# The file's time says which versions are installed, so a second run installs nothing.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo \
		"gsas-lab needs Python 3.11 or newer: name one, as in 'make run PYTHON=python3.12'." >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(if $(TORCH),$(BIN)/python -m pip install $(TORCH) -c constraints.txt)
	$(BIN)/python -m pip install -e ".[notebooks,dev]" -c constraints.txt
	@touch $@
