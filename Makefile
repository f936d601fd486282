# liveupd. `make help` lists what can be done.

# A fresh machine may have Go where its own archive unpacks it, and not in PATH.
export PATH := $(PATH):/usr/local/go/bin:/usr/lib/go/bin:/usr/sbin:/sbin
GO ?= go
# A service manager may start us without a home; Go's caches want one.
HOME ?= /root
export HOME

DESTDIR ?=
prefix  ?= /usr/local
bindir  ?= $(prefix)/bin
INSTALL ?= install
BIN     ?= bin

PROGRAMS := $(notdir $(patsubst %/,%,$(sort $(dir $(wildcard cmd/*/*.go)))))

# Static and the same from any folder, so that a program which must survive a
# bad libc does not need one, and two builds of one source can be compared.
# The commit is stamped only where git is willing to name it: it refuses a
# folder of another owner, and go build would fail with it.
VCS   := $(if $(shell git rev-parse HEAD 2>/dev/null),true,false)
BUILD := CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=$(VCS) -ldflags '-s -w'

# The Debian roots that tests boot, and the packages whose tests have a long form.
ROOTS := small bookworm trixie peers together vm
LONG  := ./transact ./tests/power ./tests/vm ./tests/layouts ./tests/boot ./tests/deb ./tests/apt ./tests/users \
	./tests/night ./tests/guard ./tests/jobs ./tests/peers ./tests/spine ./tests/settings ./rootfs ./source/patch ./recovery/...

.DEFAULT_GOAL := help
.PHONY: help build run check test test-long bench deb install clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

build: ## build the programs, static, into bin/
	@mkdir -p '$(BIN)'
	$(BUILD) -o '$(BIN)/' $(PROGRAMS:%=./cmd/%)

run: build ## show what this machine's own pending upgrades would interrupt
	tests/run.sh

check: ## format, vet, lint and the tests that need no root, in a minute or two
	@test -z "$$(gofmt -l .)" || { gofmt -l . >&2; echo 'not formatted: gofmt -w them' >&2; exit 1; }
	$(GO) vet ./...
	tests/house/lint.sh run ./...
	$(GO) run ./tests/gotest -timeout 5m -- -short ./...

test: build ## install what the tests need, then run all of them
	tests/setup/install.sh
	for root in $(ROOTS); do tests/setup/root.sh $$root >/dev/null || exit 1; done
	$(GO) vet ./...
	$(GO) run ./tests/gotest -timeout 33m -- -count=1 ./...

test-long: build ## what has a long form in full: faults, crashes, power cuts, virtual machines; some hours
	tests/setup/install.sh
	for root in $(ROOTS); do tests/setup/root.sh $$root >/dev/null || exit 1; done
	LIVEUPD_LONG=1 $(GO) run ./tests/gotest -timeout 240m -- -count=1 $(LONG)

bench: build ## measure: apply, swap, empty plan, memory
	tests/setup/install.sh
	tests/bench.sh

deb: ## build liveupd_VERSION_ARCH.deb into bin/ (ARCH=arm64 crosses)
	$(GO) run ./packaging/deb -out '$(BIN)' $(if $(ARCH),-arch '$(ARCH)') $(if $(VERSION),-version '$(VERSION)')

install: build ## install the programs (DESTDIR and prefix are honoured)
	$(INSTALL) -d '$(DESTDIR)$(bindir)'
	$(INSTALL) -m 0755 $(PROGRAMS:%='$(BIN)'/%) '$(DESTDIR)$(bindir)'

clean: ## remove what make build made
	rm -rf '$(BIN)'
