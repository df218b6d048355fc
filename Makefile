# Everything a person working on the broker types. `make help` lists it.

# Port of the broker and of the sandbox, and where the demo keeps its database, keys and secrets.
PORT ?= 8000
SANDBOX_PORT ?= 8100
DATA_DIR ?= instance

VENV := .venv
BIN := $(VENV)/bin
# Stamps: files that say what has been installed, so that a second run costs nothing.
RUNTIME := $(VENV)/.runtime
EVERYTHING := $(VENV)/.everything

# Interpreters to try, in this order. `make PYTHON=/path/to/python3.12 …` settles it.
PYTHON ?=
PYTHONS := $(if $(PYTHON),$(PYTHON),python3.13 python3.12 python3.11 python3)
USABLE := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))

# Installs a pinned, hashed requirements file: with uv in a second or two, with pip where uv cannot be had or does not get
# through. The pin of uv stands in requirements-dev.txt with all others; `pin` and `unpin` cut it out and off.
pin = sed -n '/^uv==/,/[^\\]$$/p'
unpin = sed '/^uv==/,/[^\\]$$/d'
pip = $(BIN)/python -m pip install --quiet --disable-pip-version-check
uv = $(BIN)/uv pip install --quiet --python $(BIN)/python --system-certs
install = { test -x $(BIN)/uv && $(uv) --require-hashes --requirements $(1); } || { \
	$(unpin) $(1) >$(VENV)/without-uv.txt && $(pip) --require-hashes --requirement $(VENV)/without-uv.txt; }

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: demo test setup lint types sure bench browser format translations documents pictures pins help

##@ Start here

demo: $(RUNTIME) ## Start sandbox, broker and worker in one go; PORT, SANDBOX_PORT and DATA_DIR say where
	@$(follow_make) exec $(BIN)/python -m broker demo
demo: export PORT := $(PORT)
demo: export SANDBOX_PORT := $(SANDBOX_PORT)
demo: export DATA_DIR := $(DATA_DIR)

test: setup browser ## Run every test; `make test ARGS="-k callback"` runs some
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(ARGS)

##@ While working

setup: $(EVERYTHING) ## Create .venv with everything pinned in it, and the `broker` command
	@:

lint: setup ## Check style, formatting and who may import what
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo

types: setup ## Check types
	@$(BIN)/mypy

sure: lint types test ## All checks: lint, types and tests

format: setup ## Rewrite the code as `make lint` wants it
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

bench: setup ## Run the benchmarks; `make bench ARGS="import-backlog --size 1000"` runs one, smaller
	@exec $(BIN)/python -m benchmarks $(ARGS)

browser: setup ## Find a Chromium for the browser tests, or try to get one
	@$(BIN)/python -m tests.chromium

translations: setup ## Bring the catalogues of the pages' languages up to date with what pages say
	@$(BIN)/python -m tests.translations

documents: setup ## Bring the tables of settings in docs/ up to date
	@$(BIN)/python -m tests.documents

pictures: setup browser ## Take the pictures of the documents anew, from a demo
	@$(BIN)/python -m tests.browser.screenshots

pins: setup ## Pin the newest versions that pyproject.toml allows
	@for file in "requirements.txt" "requirements-otel.txt --extra otel" "requirements-dev.txt --extra otel --group dev"; do \
		set -- $$file && $(BIN)/uv pip compile pyproject.toml --quiet --system-certs --upgrade --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate \
		--output-file "$$@" || exit; done

help: ## Show this list
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@/ { printf "%s%s\n", (n++ ? "\n" : ""), substr($$0, 5) } \
		/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- what the targets above stand on -------------------------------------------------------------------

$(BIN)/pip:
	@for python in $(PYTHONS); do \
		if "$$python" -c '$(USABLE)' 2>/dev/null; then \
			echo "Creating $(VENV) with $$("$$python" --version) …"; \
			exec "$$python" -m venv $(VENV); \
		fi; \
	done; \
	echo "No usable Python 3.11 or newer (tried: $(PYTHONS)). Install one with its venv module" \
		"(Debian: apt-get install python3 python3-venv), or say which: make PYTHON=/path/to/python3.12 setup" >&2; \
	exit 1

$(VENV)/.uv: | $(BIN)/pip
	@$(pin) requirements-dev.txt >$(VENV)/uv.txt
	@$(pip) --require-hashes --requirement $(VENV)/uv.txt || echo "uv cannot be had here; going on with pip, which takes longer."
	@touch $@

$(RUNTIME): requirements.txt $(VENV)/.uv
	@echo "Installing what the broker needs …"
	@$(call install,requirements.txt)
	@touch $@

$(EVERYTHING): requirements-dev.txt pyproject.toml $(VENV)/.uv
	@echo "Installing what the broker and its tests need …"
	@$(call install,requirements-dev.txt)
	@$(pip) --no-deps --no-build-isolation --editable .
	@touch $(RUNTIME) $@

# GNU make hands SIGTERM to the demo but keeps SIGINT for itself, and a killed make hands on nothing. This watcher stands
# beside the demo and stops it in those cases too. (Once interrupted, make neither catches nor ignores SIGINT.)
define follow_make
	demo=$$$$; ( while sleep 0.2 && kill -0 $$demo; do \
		kill -0 $$PPID && { ! test -e /proc/$$PPID/status || grep -q '^Sig[CI]g[tn]:.*[2367abef]$$' /proc/$$PPID/status; } \
		|| { sleep 0.5; kill -TERM $$demo; exit; }; \
	done ) </dev/null >/dev/null 2>&1 &
endef
