# The commands of a contributor; each installs what it needs, on a Debian machine, as root.

SHELL := /bin/bash
PYTHON := /usr/bin/python3
RUN := tests/environments/run

# What commands take from Debian.
AGENT_PACKAGES := python3-kubernetes python3-sh python3-yaml python3-cryptography python3-urllib3 \
	python3-prometheus-client
DEMO_PACKAGES := iptables iproute2 $(AGENT_PACKAGES) python3-aiohttp python3-trustme
PYTEST_PACKAGES := python3-pytest python3-hypothesis python3-trustme
DEB_TEST_PACKAGES := lintian systemd bash-completion zsh fish bsdutils groff mandoc git $(PYTEST_PACKAGES)
RELEASE_PACKAGES := dpkg-dev python3-build python3-venv python3-setuptools python3-wheel gnupg git
NODE_TEST_PACKAGES := qemu-system-x86 qemu-utils debootstrap e2fsprogs iproute2 $(AGENT_PACKAGES) $(PYTEST_PACKAGES)
ARM64_PACKAGES := qemu-system-arm qemu-user-static

# The processor of the machines of node-test: amd64 or arm64.
ARCH := amd64

.PHONY: help demo deb completion deb-test release release-test test support cluster-test node-test lint bench dashboard packages prepare kubernetes images

help: ## Show this help
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

demo: ## Show the main job on real packets, in network namespaces (under a minute)
	@packaging/build/install-missing $(DEMO_PACKAGES)
	@PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m tests.demo

deb: ## Build the Debian package into dist/, in two minutes
	@packaging/build/build-deb dist

completion: ## Make the completion for bash, zsh and fish anew, after a change of the command line
	@packaging/build/make-completion

deb-test: ## Build it twice, and check it in every way that needs no machine of its own
	@packaging/build/install-missing $(DEB_TEST_PACKAGES)
	@packaging/build/deb-test

release: ## Make a release of the tagged commit in dist/release, signed with KEY=GPG_KEY_ID
	@packaging/build/install-missing $(RELEASE_PACKAGES)
	@KEY='$(KEY)' packaging/build/release

release-test: ## Make a release twice in scratch clones, look at what is in it, and install it with apt (ten minutes)
	@packaging/build/install-missing $(RELEASE_PACKAGES) $(PYTEST_PACKAGES) $(AGENT_PACKAGES) debootstrap groff mandoc reprepro
	@packaging/build/release-test

test: ## Run all tests, in each of the five environments
	@$(RUN) all -- python3 -m pytest -p no:cacheprovider -q -n 2 $(TESTS)

support: ## Run what libraries and iptables may differ in, in the environments of docs/support.md (half an hour)
	@IPVS_NODE_AGENT_SUPPORT=1 $(RUN) support -- python3 -m pytest -p no:cacheprovider -q -n 2 $(TESTS)

cluster-test: ## Run the agent against real API servers of two versions, a quarter of an hour (QUICK=1: most of it, 6)
	@QUICK=$(QUICK) PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m tests.cluster

node-test: ## Install the package on machines with real IPVS, Debian 12 and 13, under qemu, half an hour (QUICK=1: most of it, 14; ARCH=arm64: parts of it)
	@packaging/build/install-missing $(NODE_TEST_PACKAGES) $(if $(filter arm64,$(ARCH)),$(ARM64_PACKAGES))
	@ARCH=$(ARCH) QUICK=$(QUICK) PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m tests.node $(NODE_TEST)

bench: ## Measure anew what docs/benchmarks.md shows (QUICK=1: only prove that it still can, a minute; LONG=1: an hour of changes; FLEET=1: only a fleet)
	@QUICK=$(QUICK) LONG=$(LONG) FLEET=$(FLEET) tests/bench/run

dashboard: ## Draw docs/dashboard.svg anew, from a real run of 4 minutes (QUICK=1: only prove that it still can)
	@QUICK=$(QUICK) tests/observe/run

lint: ## Check format, lint, types and imports
	@$(RUN) newest -- packaging/build/lint

packages: ## Install what these commands need from Debian
	@packaging/build/install-missing $(sort $(DEMO_PACKAGES) $(DEB_TEST_PACKAGES) $(RELEASE_PACKAGES) $(NODE_TEST_PACKAGES))

prepare: packages ## Make what the tests keep in caches: environments, Kubernetes, machines' disks
	@$(RUN) --make-only all
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target kubernetes images

kubernetes:
	@PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m tests.cluster.binaries

images:
	@PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m tests.node.image
