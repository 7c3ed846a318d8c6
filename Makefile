# The commands of a contributor; each installs what it needs, on a Debian machine, as root.

SHELL := /bin/bash
PYTHON := /usr/bin/python3
RUN := tests/environments/run

# What the demo takes from Debian.
DEMO_PACKAGES := iptables iproute2 python3-kubernetes python3-sh python3-yaml \
	python3-cryptography python3-prometheus-client python3-aiohttp python3-trustme

.PHONY: help demo deb deb-test test cluster-test node-test lint bench dashboard

help: ## Show this help
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

demo: ## Show the main job on real packets, in network namespaces (under a minute)
	@packaging/build/install-missing $(DEMO_PACKAGES)
	@PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m tests.demo

deb: ## Build the Debian package into dist/
	@packaging/build/build-deb dist

deb-test: ## Build it twice, and check it in every way that needs no machine of its own
	@packaging/build/deb-test

test: ## Run all tests, in each of the four environments
	@$(RUN) all -- python3 -m pytest -p no:cacheprovider -q -n 2 $(TESTS)

cluster-test: ## Run the agent against real API servers of two versions, 20 minutes (QUICK=1: most of it, 8)
	@QUICK=$(QUICK) PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m tests.cluster

node-test: ## Install the package on machines with real IPVS, Debian 12 and 13, under qemu, half an hour (QUICK=1: most of it, 20 minutes)
	@QUICK=$(QUICK) tests/node/run $(NODE_TEST)

bench: ## Measure anew what docs/benchmarks.md shows (QUICK=1: only prove that it still can, a minute)
	@QUICK=$(QUICK) tests/bench/run

dashboard: ## Draw docs/dashboard.svg anew, from a real run of 4 minutes (QUICK=1: only prove that it still can)
	@QUICK=$(QUICK) tests/observe/run

lint: ## Check format, lint and types
	@$(RUN) newest -- packaging/build/lint

