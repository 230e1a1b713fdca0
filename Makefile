# The short entry points. CI runs these same ones.
.DEFAULT_GOAL := help
.PHONY: help deps build lab lab-up lab-down test check install-yaml bench interop fuzz soak

TARGET := $(or $(CARGO_TARGET_DIR),target)
RELEASE := $(TARGET)/release

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

deps: ## install the Debian packages that lab and tests use, services kept from starting
	@hack/install-packages

build: deps ## release binaries: manx-agent, manxctl, manx-cni (static)
	cargo build --release --locked --package manx-agent
	@hack/build-cni $(RELEASE)

lab: build ## bring up the lab, run its checks, tear it down
	cargo build --release --locked --package manx-tests --bin manx-lab
	$(RELEASE)/manx-lab all

lab-up: build ## bring up the lab and leave it standing
	cargo build --release --locked --package manx-tests --bin manx-lab
	$(RELEASE)/manx-lab up

lab-down: ## remove the lab
	cargo build --release --locked --package manx-tests --bin manx-lab
	$(RELEASE)/manx-lab down

test: build ## every test: unit, property, kernel, lab
	@hack/test

check: ## formatting, lints, documentation, licences
	@hack/check

install-yaml: ## write what is generated of manifests/: definitions, rights, install.yaml, chart
	cargo run --locked --quiet --package manx-agent --bin manx-manifests -- manifests

bench: build ## side-by-side tables against the usual alternatives, in interleaved rounds; FULL=1 with those that take minutes
	cargo build --release --locked --package manx-tests --bin manx-bench
	$(RELEASE)/manx-bench $(if $(FULL),--full)

interop: deps ## sessions with BIRD, FRR, GoBGP and OpenBGPD in namespaces of their own
	cargo test --locked --package manx-tests --test interop -- --test-threads 3

FUZZ_TARGETS := $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs)))
FUZZ_SECONDS ?= 60

fuzz: ## fuzz every wire decoder, FUZZ_SECONDS (60) each
	@for target in $(FUZZ_TARGETS); do fuzz/run.sh $$target $(FUZZ_SECONDS) || exit 1; done

soak: build ## the long versions of what `test` samples; prints to docs/soak.txt as well
	@hack/soak
