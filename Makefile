# Every target sets up what it needs: a virtual environment in .venv with the versions pinned in constraints.txt.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1

.DEFAULT_GOAL := help
.PHONY: help demo test extras check format docs bench atlas venv clean

help:  ## show this text
	@echo "errata: lifelong knowledge editing for language models. Start with 'make demo'."
	@echo
	@sed -n 's/^\([a-z]*\):.*##  *\(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(READY)  ## edit the small model that comes with errata: on a laptop, without a download
	$(OFFLINE) $(BIN)/errata demo

test: $(READY)  ## run the tests on two cores (ARGS="-k wise" selects some)
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -q $(ARGS)

extras: $(READY)  ## install the extras ray and eval, and run their tests: two workers of Ray, lm-eval
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[ray,eval]'
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(ARGS) tests/test_cluster.py tests/test_ability.py

check: $(READY)  ## lint, format, types, and which module may import which
	$(BIN)/ruff check --output-format concise .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## bring the code into the form that 'make check' wants
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## build the documentation into site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

, := ,
SPEED := benchmarks/results/speed
timed = $(OFFLINE) $(BIN)/python benchmarks/$(2) > $(SPEED)/$(1).json.new && mv $(SPEED)/$(1).json.new $(SPEED)/$(1).json

bench: $(READY)  ## time it on this machine, in a quarter of an hour (SPEED=DIR writes elsewhere than into benchmarks/results)
	mkdir -p $(SPEED)
	$(call timed,mask_index,mask_index.py --masks 10000$(,)100000$(,)1000000)
	$(call timed,mask_index_numpy,mask_index.py --masks 10000$(,)100000$(,)1000000 --numpy)
	$(call timed,inner_loop,inner_loop.py --edits 3 --cases "wise$(,) published;ft_l;memoir;grace")
	$(call timed,throughput,throughput.py --edits 20)
	$(call timed,closed_form,closed_form.py)
	$(call timed,stream,stream.py --repeats 3)
	$(call timed,inference,inference.py --edits 20 --repeats 9)
	$(call timed,ledger,ledger.py --edits 20)

atlas: $(READY)  ## train the small model anew from its seed, in place
	$(OFFLINE) $(BIN)/python -m errata.atlas.train --output src/errata/atlas/model --no-sets \
		--metrics benchmarks/results/atlas-model.json

venv: $(READY)  ## only set up .venv

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "errata needs Python 3.11 or newer; say which: make PYTHON=python3.12")'
	@echo "Setting up $(VENV): a few minutes, once."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev,plots,peft]'
	@touch $@

clean:  ## remove .venv and everything that was built
	rm -rf $(VENV) site dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .grimp_cache .hypothesis
