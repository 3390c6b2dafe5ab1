# aoe-csi. `make help` lists the targets; everything that needs more than Go is a script of hack/.
SHELL := /bin/bash
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo v0.0.0-dev)
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin:/usr/local/go/bin

.DEFAULT_GOAL := help
.PHONY: help bench bench-full bench-profile build image demo generate manifests check lint test sim sim-bugs fuzz test-unit test-race test-net test-fencing test-flood \
	test-sanity test-interop test-static test-faults test-powercut test-recovery test-cluster soak cluster-up cluster-down vm-shell deps third-party clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 } /^##@ / { printf "\n%s\n", substr($$0, 5) }' $(MAKEFILE_LIST)

##@ Build
build: ## the binary, bin/aoe-csi
	CGO_ENABLED=0 go build -ldflags '-s -w -X main.version=$(VERSION)' -o bin/aoe-csi ./cmd/aoe-csi

image: ## container images as archives, without an engine or a registry
	hack/images.sh build

generate: ## Go from proto/, deep copies and CRDs from pkg/api
	hack/generate.sh

manifests: ## manifests/ from the chart
	hack/manifests.sh

##@ See it work
demo: ## claim, write, move the pod, compare, in a cluster of its own (KEEP=1 leaves it up; root)
	hack/demo.sh

cluster-up: ## a Kubernetes with two nodes in VMs (root)
	hack/cluster.sh up

cluster-down: ## stop it
	hack/cluster.sh down

vm-shell: ## a shell in a VM with ublk, NBD and aoe (root)
	hack/vm.sh shell

##@ Check and test
check: ## formatting, vet, lint, drift of modules, generated files and manifests
	hack/check.sh --lint

lint: ## golangci-lint only
	hack/binaries.sh build golangci-lint
	"$$(hack/binaries.sh path)/golangci-lint" run --allow-parallel-runners --timeout 20m ./...

test: ## all levels, one after the other (root; 35 to 40 min when built)
	@hack/test.sh

test-unit: ## unit tests and simulations (under a minute)
	@hack/test.sh unit

sim: ## simulation: SEEDS=10000 from FROM=1 on, or SEED=n to replay one with a trace
	@hack/sim.sh run

sim-bugs: ## plant known bugs; the simulation must find each
	@hack/sim.sh bugs

fuzz: ## every parser and both state machines, FUZZTIME=5m each; FUZZ=name for one; prints executions
	@hack/fuzz.sh

test-race: ## the same under the race detector
	@hack/test.sh race

test-net: ## AF_PACKET and devices in network namespaces (root)
	@hack/test.sh net

test-fencing: ## 100 hand-overs between two initiators, in network namespaces (root; a part of test-net; FULL=1: also between two nodes of a cluster)
	@hack/test.sh fencing

test-flood: ## malformed, forged and spoofed frames beside a verified load, in network namespaces (root; a part of test-net)
	@hack/test.sh flood

test-sanity: ## csi-sanity in a VM (root)
	@hack/test.sh sanity

test-interop: ## vblade, the kernel's aoe driver, aoetools in a VM (root)
	@hack/test.sh interop

test-static: ## pools of LUNs that are there already: vblades, 2000 targets, 1000 runs with crashes; prints figures (root; CLUSTER=1: in Kubernetes, too)
	@hack/test.sh static

test-faults: ## loss, fencing, lost answers in a VM (root)
	@hack/test.sh faults

test-powercut: ## power cuts of the target under fsyncs, a disk that fails a write, in a VM; prints figures (root; FULL=1 for 100 cuts)
	@hack/test.sh powercut

test-recovery: ## SIGKILL of the initiator, dead targets, no memory in a VM; prints figures (root; FRONTEND=ublk|nbd, FULL=1)
	@hack/test.sh recovery

test-cluster: ## the chart in a real Kubernetes (root)
	@hack/test.sh cluster

soak: ## HOURS=1 of volumes' lives amid kills and rough networks, in a VM; writes docs/soak.md (root)
	hack/soak.sh

##@ Measure
bench: ## as fast as the wire? against vblade, NBD and NVMe/TCP; writes docs/bench (root, a quiet machine, 15 min)
	hack/bench.sh

bench-full: ## how cost grows with depth, volumes, frame size and loss, and iSCSI; writes docs/bench/full.* (root, a quiet machine, 20 min)
	hack/bench.sh full

bench-profile: ## where the time of the VM's jobs goes, by perf and pprof; writes docs/bench/profile.md (root, a quiet machine, 5 min)
	hack/bench.sh profile

##@ Prepare
deps: ## Debian packages (root)
	hack/deps.sh

third-party: ## build Kubernetes, etcd, side-cars and Helm into the cache
	hack/binaries.sh build

clean: ## remove what was built in the tree (the cache is ~/.cache/aoe-csi)
	rm -rf bin
