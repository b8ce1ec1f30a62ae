# make setup      the environment .venv, from nothing
# make demo       set up from nothing, then the main job on this machine without network
# make test       set up from nothing, then every test
# make lab        JupyterLab on notebooks/
# make notebooks  execute in place the notebooks whose code has changed
# make notebooks-test  execute all of them, and leave them as they are
# make classroom  copies of the notebooks without outputs and solutions
# make site       the lessons as a static site in build/site (REPOSITORY=owner/name: with links to Colab and Binder)
# make lint       formatting, lint and types
# make clean      remove what these made (not data/ or runs/ of your own)
#
# A small build of torch on a Linux machine without a GPU:
#   make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
DEMO := runs/demo
STORIES := data/stories-2048

.PHONY: setup demo test lab notebooks notebooks-test classroom site lint clean
.DEFAULT_GOAL := demo

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch -c constraints.txt
	$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	touch $@

setup: $(READY)

# what some tests compare with: other formats and programs, a compiler for GPUs, axe-core. A package that can't be
# installed here is left out, and its tests are skipped
.venv/optional: $(READY)
	-$(BIN)/python -m pip install --quiet -e '.[onnx,gguf]' -c constraints.txt
	-$(BIN)/python -m pip install --quiet -e '.[lowering,fp8]' -c constraints.txt
	-$(BIN)/python -m pip install --quiet 'lm_eval[hf]' xllamacpp -c constraints.txt
	-$(BIN)/python -m pip install --quiet --no-deps axe-playwright-python -c constraints.txt
	touch $@

.venv/site: $(READY)
	$(BIN)/python -m pip install --quiet -e '.[site]' -c constraints.txt
	touch $@

demo: $(READY)
	$(BIN)/python fineweb.py --source stories --vocab-size 2048 --out $(STORIES)
	$(BIN)/python train_gpt2.py demo --log.overwrite --system.device cpu
	$(BIN)/gpt2 plot $(DEMO)/log.txt -o $(DEMO)/loss.png
	$(BIN)/gpt2 evaluate $(DEMO)
	$(BIN)/gpt2 generate $(DEMO) --prompt 'The old man looked at' --tokens 120

test: .venv/optional .venv/site
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m 'not alone and not gpu' -n 2 --dist worksteal
	$(BIN)/python -m pytest -m 'alone or gpu'

lab: $(READY)
	$(BIN)/jupyter lab --notebook-dir notebooks notebooks/00_start_here.ipynb

notebooks: $(READY)
	$(BIN)/python notebooks/execute.py --stale
	$(BIN)/python notebooks/contents.py

notebooks-test: $(READY)
	$(BIN)/python notebooks/execute.py --out runs/notebooks-test

classroom: $(READY)
	$(BIN)/python notebooks/classroom.py

site: .venv/site
	REPOSITORY=$(REPOSITORY) $(BIN)/python site/build_site.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .mypy_cache $(DEMO) $(STORIES)
	rm -rf runs/notebook-* data/notebook-*
	find . -name __pycache__ -prune -exec rm -rf {} +
