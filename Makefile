# Everything a person or CI runs here. Needs Rust, Python 3 with pip, and make; the rest comes with `make setup`.

PYTHON ?= python3
CONFIG ?= seatbelt.toml
# not from the environment, where these names mean anything
MODEL = tiny
PRECISION = int4
CARGO_TARGET_DIR ?= target
export CARGO_TARGET_DIR

.DEFAULT_GOAL := help
.PHONY: help setup setup-test setup-clients clients model build up ci test nightly mutants faults gpu-proof bench bench-neuron lint typos deny layers clean-data

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-12s %s\n", $$1, $$2 }'

setup: ## fetch nats-server and libonnxruntime into .deps/
	@$(PYTHON) scripts/setup.py

setup-test: ## the same, and the Python SDKs that the end-to-end tests drive
	@$(PYTHON) scripts/setup.py --test

setup-clients: ## the same, and all clients that `make clients` drives (2 GB; needs npm)
	@$(PYTHON) scripts/setup.py --clients

model: ## make a real model, SmolLM2-135M, in .deps/models/smollm2 (fp32, int4, fp16)
	@$(PYTHON) scripts/make_model.py

build: setup ## build target/release/seatbelt
	cargo build --release --locked -p seatbelt-cli

ifeq ($(MODEL),smollm2)
# In the place of the first model of the configuration, with the slots and the price of that.
up: model
up: export SEATBELT__NEURON__MODELS__0__ID = smollm2
up: export SEATBELT__NEURON__MODELS__0__PATH = $(CURDIR)/.deps/models/smollm2/$(PRECISION)
else ifneq ($(MODEL),tiny)
$(error MODEL=$(MODEL) is not known: tiny or smollm2)
endif

up: build ## build and serve everything in one process (CONFIG=seatbelt.toml MODEL=tiny|smollm2)
	$(CARGO_TARGET_DIR)/release/seatbelt up --config $(CONFIG)

ci: ## what CI runs, all of it
	@PYTHON=$(PYTHON) .ci/run

test: setup-test ## run every test; the last line counts them
	@$(PYTHON) scripts/run_tests.py

clients: setup-clients ## drive real clients, SDKs, frameworks and coding agents, as they are (CLIENTS=--only NAME ...)
	cargo build --locked -p seatbelt-cli
	$(PYTHON) tests/clients/run.py $(CLIENTS)

nightly: setup model clients ## the long simulations (100,000 runs of writers, 50,000 of whole processes, 1,000,000 bodies), the real model and real clients
	cargo test --locked -p seatbelt-neuron --test neuron -- --ignored real_model
	SEATBELT_SIM_RUNS=100000 cargo test --locked -p seatbelt-ledger --test simulation
	SEATBELT_SIM_RUNS=50000 cargo test --locked -p seatbelt-projector --test processes
	$(PYTHON) scripts/prices.py --check
	SEATBELT_FUZZ_BODIES=1000000 cargo test --locked -p seatbelt-dialects -p seatbelt-gateway --lib

mutants: ## take each cure of scripts/mutants.toml out: the simulations must find it (hours)
	@$(PYTHON) scripts/mutants.py $(MUTANTS)

faults: setup ## kill, freeze and starve real processes for about 20 minutes; prints one table
	cargo build --locked -p seatbelt-cli -p seatbelt-tests --bins
	$(CARGO_TARGET_DIR)/debug/seatbelt-faults $(FAULTS)

gpu-proof: build model ## on a machine with an NVIDIA GPU: prove the neuron there and measure it (docs/gpu.md)
	$(PYTHON) scripts/gpu_proof/pack.py .deps/gpu-proof-parts $(PACK)
	rm -rf .deps/gpu-proof-run && mkdir -p .deps/gpu-proof-run
	cat $$(ls -v .deps/gpu-proof-parts/*/part) | tar x -C .deps/gpu-proof-run
	$(PYTHON) .deps/gpu-proof-run/scripts/gpu_proof/run.py --folder .deps/gpu-proof-run

bench: setup ## measure; prints one table
	cargo build --release --locked -p seatbelt-cli -p seatbelt-tests --bins
	$(CARGO_TARGET_DIR)/release/seatbelt-bench
	cargo test --release --locked --quiet -p seatbelt-schemas --test codec -- --ignored --nocapture

bench-neuron: build model ## measure a neuron beside onnxruntime-genai on the CPU; prints one table (needs Python 3.11)
	@$(PYTHON) scripts/bench_neuron.py --binary $(CARGO_TARGET_DIR)/release/seatbelt $(BENCH)

lint: ## formatting, clippy and documentation, all without warnings
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

typos: setup-test ## misspelt words; .codespellrc lists those that are right
	@git ls-files -z | xargs -0 .deps/venv/bin/python -m codespell_lib

deny: ## licences, banned crates, sources and advisories
	@$(PYTHON) scripts/deny.py

layers: ## prove the dependency directions between the crates, and that the promises' tests are there
	@$(PYTHON) scripts/check_layers.py --self-test
	@$(PYTHON) scripts/check_layers.py
	@$(PYTHON) scripts/check_promises.py --self-test
	@$(PYTHON) scripts/check_promises.py

clean-data: ## delete the embedded server's data of the example configuration
	@if ! $(PYTHON) scripts/data_in_use.py data; then exit 1; fi
	rm -rf data
