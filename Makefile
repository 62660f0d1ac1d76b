# Everything starts here; `make help` lists the targets. Only Python 3.11+, pip and make are needed.

PYTHON  ?= python3
VENV    := .venv
BENCH   := $(VENV)/bin/python -m retrieval_bench
RESULTS ?= results/local
DATA    ?=
PROFILE ?= cpu
NAME    ?= $(if $(DATA),cub,emoji)
ARGS    ?=
ROOT    := $(if $(DATA),--data-root "$(DATA)")

.DEFAULT_GOAL := help
.PHONY: help setup bench bench-cub bench-cars bench-sop bench-inshop bench-flowers bench-emoji bench-mine bench-smoke bench-data bench-eval bench-routing bench-pruning bench-train ablation-pruning figure-weight-variation table-autolr table-learning-rates table-spottune figure-routes table-strategies table-losses curve-pruning figure-structure-similarity table-cifar reality-check strategies-page leaderboard report figures test known-answers lint types check clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-24s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  Variables: DATA=<folder or archive>  RESULTS=<folder, default results/local>  ARGS=\"<more flags>\""
	@echo "  PROFILE=<paper, cpu (the default) or smoke> for the tables and figures of papers"

setup: $(VENV)/installed ## Make .venv and install the package with its development tools

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; choose one with PYTHON=python3.x"; exit 2; }
	@echo "setting up $(VENV) (a few minutes and about 5 GB, most of it torch)"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --upgrade "pip>=24"
	@$(VENV)/bin/python -m pip install --quiet --editable ".[dev]"
	@touch $@

bench: setup ## Compare strategies on emoji: the main job, about ten minutes on 2 cores
	$(BENCH) bench emoji_mini --results $(RESULTS) $(ARGS)

bench-cub: setup ## The same on CUB-200-2011 birds (DATA=<folder or archive>; downloads without)
bench-cars: setup ## The same on Cars-196 (DATA=<folder or archive> is needed: there is no official download any more)
bench-sop: setup ## The same on Stanford Online Products (DATA=<folder or archive>; downloads without)
bench-inshop: setup ## The same on In-Shop Clothes, queries and gallery apart (DATA=<folder> is needed: its licence asks a person)
bench-flowers: setup ## The same on Oxford Flowers 102 (DATA=<folder>; downloads without)
bench-emoji: setup ## The same on all emoji
bench-cub bench-cars bench-sop bench-inshop bench-flowers bench-emoji: bench-%:
	$(BENCH) bench $* --results $(RESULTS) $(ROOT) $(ARGS)

bench-mine: setup ## Say which strategy to use on photos of your own, and index them (DATA=<a folder of images per class>)
	@test -n "$(DATA)" || { echo "error: give DATA=<folder with one sub-folder of images per class>"; exit 2; }
	$(BENCH) recommend "$(DATA)" --results $(RESULTS) $(ARGS)

bench-smoke: setup ## The same on drawn patterns: shows within a minute that everything works
	$(BENCH) bench synthetic --results $(RESULTS) $(ARGS)

bench-eval: setup ## Time the evaluator beside its peers, and on hard data, on an idle machine (tens of minutes)
	$(VENV)/bin/python -m benchmarks.eval_speed $(ARGS)

bench-routing: setup ## Time a routed network beside the plain backbone and beside both branches, on an idle machine
bench-pruning: setup ## Time pruned networks beside the whole one, on an idle machine (ARGS="--batch-size 1")
bench-routing bench-pruning: bench-%:
	$(VENV)/bin/python -m benchmarks.inference_speed $* $(ARGS)

bench-data: setup ## Time reading images beside a training step, on an idle machine (NAME=<data set>, DATA=<folder or archive>)
bench-train: setup ## Time training beside the bare step and two other trainers, on an idle machine (NAME=<data set>, DATA, ARGS="--backbone resnet50")
bench-data: SPEED = --batch-size 64 --steps 8 --workers -1
bench-data bench-train: bench-%:
	$(VENV)/bin/python -m benchmarks.training_speed $* $(SPEED) --dataset $(NAME) $(ROOT) $(ARGS)

ablation-pruning: setup ## Regenerate the AutoLR paper's ablation of layer-wise pruning on CUB (PROFILE, DATA)
figure-weight-variation: setup ## Its figure: weight variation, rates and passes, with one rate and with AutoLR (PROFILE, DATA)
table-autolr: setup ## Frozen, standard, pruned, AutoLR and both, under three losses (PROFILE, DATA)
table-learning-rates: setup ## AutoLR beside other ways to set learning rates (PROFILE, DATA)
table-spottune: setup ## The SpotTune paper's table: closed-set accuracy and R@K of every row (PROFILE, NAME=<cub, cars, flowers, wikiart, sketches>, DATA)
figure-routes: setup ## Its routes: which blocks are tuned for which images and classes (PROFILE, NAME, DATA)
curve-pruning: setup ## Recall@1 against size: channels chosen in six ways, and whole blocks (PROFILE, DATA)
figure-structure-similarity: setup ## How alike pruned structures of several seeds and lengths of training are (PROFILE, DATA)
table-cifar: setup ## Ways to find a ResNet-20 of half the cost on CIFAR-10, and what the search costs (PROFILE, DATA)
table-strategies: setup ## Every strategy under one retrieval protocol; PROFILE=emoji also measures them on birds (PROFILE, DATA)
table-losses: setup ## Strategies under four losses: does their ranking depend on the loss? (PROFILE)
ablation-pruning: STUDY = ablation_pruning
figure-weight-variation: STUDY = figure_weight_variation
table-autolr: STUDY = table_autolr
table-learning-rates: STUDY = learning_rates
table-spottune: STUDY = table_spottune
figure-routes: STUDY = figure_routes
table-strategies: STUDY = table_strategies
table-losses: STUDY = table_losses
curve-pruning: STUDY = curve_pruning
figure-structure-similarity: STUDY = figure_structure_similarity
table-cifar: STUDY = table_cifar
table-spottune figure-routes: SET = $(if $(filter-out smoke,$(PROFILE)),$(if $(filter file,$(origin NAME)),,--dataset $(NAME)))
ablation-pruning figure-weight-variation table-autolr table-learning-rates table-spottune figure-routes table-strategies table-losses curve-pruning figure-structure-similarity table-cifar:
	$(BENCH) study $(STUDY) $(PROFILE) $(SET) --results $(RESULTS) $(ROOT) $(ARGS)

strategies-page: setup ## Write docs/strategies.md again, after a strategy has changed
	$(VENV)/bin/python -m tests.strategies.page

reality-check: setup ## Strategies searched with equal means, then retrained and ranked; PROFILE=cpu needs no data (PROFILE, DATA, ARGS="--jobs 2")
	$(BENCH) reality-check $(PROFILE) --results $(RESULTS) $(ROOT) $(ARGS)

leaderboard: setup ## Print which strategy is best, and the table of your records (RESULTS=results: the committed ones)
report: setup ## Write report.html of your records: answers, tables, figures, galleries in one file (RESULTS=results: the committed ones)
figures: setup ## Draw every figure of your records, SVG and PNG (RESULTS=results: of the committed ones)
leaderboard report figures:
	$(BENCH) $@ --results $(RESULTS) $(ARGS)

test: setup ## Run the tests
	$(VENV)/bin/python -m pytest -n auto --dist loadfile $(ARGS)

known-answers: setup ## Compare frozen features of all CUB test images with known answers (DATA=<folder of tars and weights>)
	RETRIEVAL_BENCH_REAL_DATA="$(DATA)" $(VENV)/bin/python -m pytest tests/test_real_data.py -m slow $(ARGS)

lint: setup ## Check style
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: setup ## Check types
	$(VENV)/bin/pyright

check: lint types test ## Everything that must pass before a commit

clean: ## Remove .venv and caches (records and downloaded data stay)
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
