# csi-driver-vhdx. Bare `make` prints the targets.
#
# `make demo` and `make test` set up a fresh Debian or Ubuntu machine that has
# Go; every other target expects that one of them, or `make deps`, has run.

SHELL         := /bin/bash
.SHELLFLAGS   := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS     += --no-builtin-rules --no-print-directory

GO      ?= go
BIN     := $(CURDIR)/bin
MODULE  := github.com/csi-vhdx/csi-driver-vhdx

# The one place where the version is decided; the binaries get it by -ldflags.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)

IMAGE    ?= csi-vhdx/vhdx-csi:$(VERSION)
FUZZTIME ?= 20s
CRASH_IMAGES ?= 2000000
KILLS    ?= 1000

# Mounting, loop devices and FUSE want root.
ifeq ($(shell id -u),0)
AS_ROOT :=
else
AS_ROOT := sudo -E env PATH="$$PATH"
endif

.PHONY: help
help: ## print this list
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: deps
deps: ## install the OS packages that demo and test need (apt; quick when present)
	@hack/deps.sh

.PHONY: build
build: ## build the binaries into bin/, static, version stamped
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/...

.PHONY: demo
demo: deps build ## the main job, shown step by step: create, mount, power cut, replay, grow, delete
	@$(AS_ROOT) $(BIN)/vhdx-demo

# Packages whose tests do less with -short. The others have run in full with
# the race detector.
HAVE_SHORT_FORM = $(shell grep -rl --include='*_test.go' 'testing\.Short()' cmd internal pkg test | xargs -n 1 dirname | sort -u | sed 's,^,./,')

.PHONY: test
test: deps build lint ## everything: lint, all tests (race detector on), oracles, csi-sanity
	$(GO) run ./tools/testrun $(TESTRUN_FLAGS) \
		'race detector: -race -short -timeout 30m ./...' \
		'full size: -timeout 40m $(HAVE_SHORT_FORM)' \
		'manifests: -C tools/manifests -count=1 ./...' \
		'monitoring: -C tools/monitoring ./...'

.PHONY: test-short
test-short: ## the unit tests in their short form, no lint
	$(GO) run ./tools/testrun $(TESTRUN_FLAGS) 'short: -short -timeout 10m ./...'

.PHONY: crash
crash: ## the power-cut test with CRASH_IMAGES (2000000) distinct images
	$(GO) test ./pkg/vhdx -run 'TestCrash$$' -crash.images=$(CRASH_IMAGES) -timeout 0 -v

.PHONY: chaos
chaos: deps ## kill the server KILLS times (1000) under load on the real kernel and read everything back; CHAOS_FLAGS
	$(GO) build -tags chaos -o $(BIN)/chaos/ ./cmd/vhdx-csi ./test/chaos
	@$(AS_ROOT) $(BIN)/chaos/chaos --kills=$(KILLS) $(CHAOS_FLAGS)

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME (20s)
	@GO=$(GO) FUZZTIME=$(FUZZTIME) hack/fuzz.sh

.PHONY: sanity
sanity: deps build ## csi-sanity against the real plugin process, filesystem and block
	$(GO) run ./tools/testrun $(TESTRUN_FLAGS) 'csi-sanity: -count=1 -timeout 20m ./test/sanity/...'

VM        := $(BIN)/vm
VM_KERNEL ?= $(CURDIR)/../shared/vm-harness/uml612.xz

.PHONY: vm
vm: build ## the driver on real NFS and SMB mounts whose servers fail, in a User Mode Linux; VM_KERNEL=uml.xz VM_FLAGS='-run TestFence'
	@hack/deps.sh vm
	CGO_ENABLED=0 $(GO) build -o $(VM)/vm ./test/vm
	for p in ./test/vm/guest ./pkg/blockdev/fuseloop; do CGO_ENABLED=0 $(GO) test -c -o $(VM)/$$(basename $$p).test $$p; done
	cp $(BIN)/vhdx-csi $(VM)/
	@$(AS_ROOT) $(VM)/vm -kernel=$(VM_KERNEL) $(VM_FLAGS)

.PHONY: bench
bench: build ## speed against qemu-storage-daemon and a raw loop device; BENCH_FLAGS
	@hack/deps.sh bench
	$(GO) build -o $(BIN)/vhdx-bench ./test/bench
	@$(AS_ROOT) $(BIN)/vhdx-bench $(BENCH_FLAGS)

.PHONY: bench-image
bench-image: build ## vhdxctl against qemu-img on the same files, ten minutes; BENCH_FLAGS (--quick, --json)
	@hack/deps.sh bench
	$(GO) build -o $(BIN)/bench-image ./test/bench-image
	@$(AS_ROOT) $(BIN)/bench-image -vhdxctl $(BIN)/vhdxctl $(BENCH_FLAGS)

.PHONY: lint
lint: $(BIN)/tools/golangci-lint ## golangci-lint, and a note of what has grown long
	$(GO) mod tidy -diff
	$(BIN)/tools/golangci-lint run
	@$(GO) run ./tools/sizes

.PHONY: lint-selftest
lint-selftest: $(BIN)/tools/golangci-lint ## plant a forbidden import for each depguard rule; the linter must object
	GOLANGCI_LINT=$(BIN)/tools/golangci-lint $(GO) test -count=1 ./tools/lintselftest

.PHONY: verify
verify: test demo e2e ## what CI runs

.PHONY: build-all
build-all: ## that the binaries compile for every architecture the image is for
	for arch in amd64 arm64; do CGO_ENABLED=0 GOARCH=$$arch $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/linux-$$arch/ ./cmd/vhdx-csi ./cmd/vhdxctl; done

# Kubernetes and the sidecars. Their versions stand in test/e2e/go.mod alone.
CLUSTER         := $(BIN)/cluster
KUBE_VERSION     = $(shell $(GO) list -C test/e2e -m -f '{{.Version}}' k8s.io/kubernetes)
KUBE_STAMP       = k8s.io/component-base/version
KUBE_LDFLAGS     = -s -w -X $(KUBE_STAMP).gitVersion=$(KUBE_VERSION) -X $(KUBE_STAMP).gitMajor=$(word 1,$(subst ., ,$(KUBE_VERSION:v%=%))) \
	-X $(KUBE_STAMP).gitMinor=$(word 2,$(subst ., ,$(KUBE_VERSION))) -X $(KUBE_STAMP).gitTreeState=clean
MODULE_DIR       = "$$($(GO) list -C test/e2e -m -f '{{.Dir}}' github.com/kubernetes-csi/$(1))"
START_CLUSTER    = $(AS_ROOT) $(CLUSTER)/cluster -bin $(CLUSTER) -plugin $(BIN) -version $(VERSION)

.PHONY: cluster-build
cluster-build: build
	@hack/deps.sh cluster
	CGO_ENABLED=0 $(GO) build -C test/e2e -ldflags '$(KUBE_LDFLAGS)' -o $(CLUSTER)/ tool ./cmd/...
	rm -rf $(CLUSTER)/crd && cp -r --no-preserve=mode $(call MODULE_DIR,external-snapshotter/client/v8)/config/crd $(CLUSTER)/crd
	rm -rf $(CLUSTER)/cbt && cp -r --no-preserve=mode $(call MODULE_DIR,external-snapshot-metadata/client)/config/crd $(CLUSTER)/cbt
	cp --no-preserve=mode $(call MODULE_DIR,external-snapshot-metadata)/deploy/snapshot-metadata-client-cluster-role.yaml $(CLUSTER)/cbt/

.PHONY: cluster
cluster: cluster-build ## a throw-away Kubernetes with the driver in it: a shell there, or RUN='kubectl get pods -A'
	@$(START_CLUSTER) $(if $(RUN),bash -c '$(subst ','\'',$(RUN))')

.PHONY: e2e
e2e: cluster-build ## the end-to-end tests in such a cluster; E2E_FLAGS='-run TestX'
	$(GO) vet -C test/e2e ./...
	CGO_ENABLED=0 $(GO) test -C test/e2e ./internal/...
	CGO_ENABLED=0 $(GO) test -C test/e2e -c -o /dev/null .
	@$(START_CLUSTER) env CGO_ENABLED=0 GOPROXY=off $(GO) test -C test/e2e -vet=off -count=1 -v -timeout 24m $(E2E_FLAGS) .

.PHONY: picture
picture: cluster-build ## the dashboard with the data of an end-to-end run, into docs/how-to; needs prometheus (apt)
	$(GO) build -C tools/monitoring -o $(BIN)/picture ./picture
	@$(START_CLUSTER) env CGO_ENABLED=0 GOPROXY=off $(BIN)/picture -dashboard deploy/grafana/csi-driver-vhdx.json -out docs/how-to/dashboard.png \
		$(GO) test -C test/e2e -vet=off -count=1 -timeout 18m -run 'TestDriverDies|TestEvents' .

.PHONY: image
image: ## the container image, with docker or buildah, whichever is there
	@IMAGE=$(IMAGE) VERSION=$(VERSION) hack/image.sh

.PHONY: manifests
manifests: ## render deploy/kubernetes and the chart's reference page from the chart
	$(GO) run -C tools/manifests .

.PHONY: manifests-dryrun
manifests-dryrun: ## have the API server that kubectl points at check every kustomization and sample, changing nothing
	@hack/manifests-dryrun.sh

.PHONY: man
man: build ## the manual pages of vhdxctl, into bin/man
	@$(BIN)/vhdxctl man $(BIN)/man

.PHONY: clean
clean: ## remove bin/
	rm -rf $(BIN)

# The linter has a module of its own, so that the driver's go.mod stays the driver's.
$(BIN)/tools/golangci-lint: tools/golangci/go.mod tools/golangci/go.sum
	@echo "building golangci-lint (a few minutes, once)"
	CGO_ENABLED=0 $(GO) build -C tools/golangci -o $@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint
