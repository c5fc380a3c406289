# qsweep — bare `make` builds what this machine can build; `make help` lists the rest.

BUILD   ?= build
VERSION := 0.1.0
CC      ?= gcc
MPICC   ?= $(shell command -v mpicc 2>/dev/null)
NVCC    ?= $(firstword $(shell command -v nvcc 2>/dev/null) $(wildcard /usr/local/cuda/bin/nvcc))
PKG     ?= pkg-config
# make CUDA=0 or MPI=0 leaves that half out; so does a machine without the compiler.
CUDA    ?= $(if $(NVCC),1,0)
MPI     ?= $(if $(MPICC),1,0)
# Statically linked small libraries where the archives are installed: one binary then starts on bare machines.
STATIC  ?= 1
# Architectures of the GPU code. CI builds sm_90 + PTX; `make release` builds them all; CUDA_ARCH=sm_86 narrows it.
CUDA_ARCH ?= sm_90

# Short lines while building; `make V=1` shows the commands.
Q       := $(if $(V),,@)
say      = $(if $(V),,@printf '  %-5s %s\n' $(1) $(2))

CFLAGS  ?= -O2 -g
LDFLAGS ?=
WARN    := -Wall -Wextra -Wshadow -Wno-unused-parameter
ALL_CFLAGS = -std=c11 -D_GNU_SOURCE -DQSWEEP_VERSION='"$(VERSION)"' $(WARN) -Isrc -I. -pthread $(CFLAGS) $(EXTRA)

H5_PC     := $(firstword $(foreach p,hdf5-serial hdf5,$(shell $(PKG) --exists $(p) 2>/dev/null && echo $(p))))
H5_CFLAGS := $(if $(H5_PC),$(shell $(PKG) --cflags $(H5_PC) 2>/dev/null))
H5_LIBDIR := $(patsubst -L%,%,$(firstword $(if $(H5_PC),$(shell $(PKG) --libs-only-L $(H5_PC) 2>/dev/null))))

# $(call lib,pkg,archive): the archive itself when static linking is wanted and possible, else pkg-config's flags.
archive = $(firstword $(wildcard $(addsuffix /$(1),$(shell $(PKG) --variable=libdir $(2) 2>/dev/null) /usr/lib/$(shell $(CC) -print-multiarch 2>/dev/null) /usr/lib)))
lib     = $(if $(and $(filter 1,$(STATIC)),$(call archive,$(2),$(1))),$(call archive,$(2),$(1)),$(shell $(PKG) --libs $(1) 2>/dev/null))
LIBS   := $(if $(and $(filter 1,$(STATIC)),$(wildcard $(H5_LIBDIR)/libhdf5.a)),$(H5_LIBDIR)/libhdf5.a $(call archive,libsz.a,zlib) $(call archive,libaec.a,zlib) $(call archive,libz.a,zlib),$(shell $(PKG) --libs $(H5_PC) 2>/dev/null) -lz) \
          $(call lib,jansson,libjansson.a) $(call lib,yaml-0.1,libyaml.a) $(call lib,libpcre2-8,libpcre2-8.a) \
          $(call lib,libxxhash,libxxhash.a) $(call lib,nettle,libnettle.a) \
          -ldl -lm -lpthread

comma    := ,
SRC      := $(sort $(shell find src -name '*.c'))
CUDA_SRC := $(filter src/backend/cuda%.c src/backend/peer.c,$(SRC))
LIB_SRC  := $(filter-out src/main.c src/launch/fabric_mpi.c src/launch/fabric_solo.c $(CUDA_SRC),$(SRC))
LIB_OBJ  := $(LIB_SRC:%=$(BUILD)/%.o)
LIB      := $(BUILD)/libqsweep.a
KERNELS  := $(sort $(wildcard kernels/*.cu))

ifeq ($(CUDA),1)
CUDA_HOME ?= $(patsubst %/bin/nvcc,%,$(realpath $(NVCC)))
CUDA_OBJ  := $(CUDA_SRC:%=$(BUILD)/%.o) $(KERNELS:%=$(BUILD)/%.o)
# libstdc++ from its archive: the shared one of Debian 12 would want C library 2.36, which Ubuntu 22.04 lacks.
STDCXX    := $(if $(and $(filter 1,$(STATIC)),$(filter /%,$(shell $(CC) -print-file-name=libstdc++.a 2>/dev/null))),-static-libgcc -l:libstdc++.a,-lstdc++)
CUDA_LIBS := $(if $(CUDA_OBJ),-L$(CUDA_HOME)/lib64 -lcudart_static -lrt -ldl -lpthread $(STDCXX))
ARCHES    := $(foreach a,$(CUDA_ARCH),-gencode=arch=$(a:sm_%=compute_%),code=$(a)) \
             -gencode=arch=$(patsubst sm_%,compute_%,$(patsubst %a,%,$(lastword $(CUDA_ARCH)))),code=$(patsubst sm_%,compute_%,$(patsubst %a,%,$(lastword $(CUDA_ARCH))))
NVFLAGS   ?= -O3 -lineinfo
# The codec's convolutions have a second form for warp groups (wgmma), which only the architecture's own variant has.
ifneq ($(filter sm_90,$(CUDA_ARCH)),)
$(BUILD)/kernels/codec_conv.cu.o: ARCHES := $(subst compute_90$(comma)code=sm_90,compute_90a$(comma)code=sm_90a,$(ARCHES))
$(BUILD)/kernels/codec_conv.cu.o: NVFLAGS += -DCODEC_WGMMA
endif
$(BUILD)/src/backend/%.o: EXTRA += -DHAVE_CUDA -I$(CUDA_HOME)/include
# `qsweep doctor` says which cards and drivers this program is for.
CUDA_VERSION := $(shell sed -n 's/^.define CUDA_VERSION \([0-9]*\)0\([0-9]\)0$$/\1.\2/p' $(CUDA_HOME)/include/cuda.h 2>/dev/null)
$(BUILD)/src/cmd/checkup_gpu.c.o: EXTRA += -DQSWEEP_CUDA_ARCH='"$(CUDA_ARCH)"' -DQSWEEP_CUDA_VERSION='"$(CUDA_VERSION)"'
$(BUILD)/tests/gpu/%.o: EXTRA += -I$(CUDA_HOME)/include
endif

FABRIC_SOLO := $(patsubst %,$(BUILD)/%.o,$(wildcard src/launch/fabric_solo.c))
FABRIC_MPI  := $(patsubst %,$(BUILD)/%.o,$(wildcard src/launch/fabric_mpi.c))
PROGRAMS := $(BUILD)/qsweep $(if $(filter 1,$(MPI)),$(BUILD)/qsweep-mpi)
all: $(PROGRAMS) ## build qsweep, and qsweep-mpi where an MPI compiler is found

$(BUILD)/qsweep: $(BUILD)/src/main.c.o $(FABRIC_SOLO) $(LIB) $(CUDA_OBJ)
	$(call say,LINK,$@)
	$(Q)$(CC) $(CFLAGS) -pthread -Wl,--gc-sections -Wl,--as-needed -o $@ $(BUILD)/src/main.c.o $(FABRIC_SOLO) \
	    -Wl,--start-group $(LIB) $(CUDA_OBJ) -Wl,--end-group $(LIBS) $(CUDA_LIBS) $(LDFLAGS)

$(BUILD)/qsweep-mpi: $(BUILD)/src/main.c.o $(FABRIC_MPI) $(LIB) $(CUDA_OBJ) $(BUILD)/qsweep
	$(call say,LINK,$@)
	$(Q)$(MPICC) $(CFLAGS) -pthread -Wl,--gc-sections -Wl,--as-needed -o $@ $(BUILD)/src/main.c.o $(FABRIC_MPI) \
	    -Wl,--start-group $(LIB) $(CUDA_OBJ) -Wl,--end-group $(LIBS) $(CUDA_LIBS) $(LDFLAGS)


$(LIB): $(LIB_OBJ)
	@rm -f $@
	$(call say,AR,$@)
	$(Q)ar rcs $@ $^

$(BUILD)/src/launch/fabric_mpi.c.o: CC = $(MPICC) # the only object that can see <mpi.h>
$(BUILD)/src/backend/cpu_codec.c.o: EXTRA += -O3  # plain loops over a row: vectorised only from here on
$(BUILD)/src/store/%.o: EXTRA += $(H5_CFLAGS)     # the only folder that can see hdf5.h

# Remake everything when the flags change: a stale object of other flags is a wrong measurement.
FLAGS_NOW := $(CC) $(ALL_CFLAGS) $(CUDA) $(CUDA_ARCH) $(NVFLAGS) $(LIBS)
$(BUILD)/flags: FORCE
	@mkdir -p $(@D)
	@printf '%s\n' '$(subst ','\'',$(FLAGS_NOW))' | cmp -s - $@ || printf '%s\n' '$(subst ','\'',$(FLAGS_NOW))' >$@
# The commit goes into provenance, and only that object is made again when it changes.
GIT_NOW := $(shell git describe --always --dirty --abbrev=12 2>/dev/null || echo unknown)
$(BUILD)/git: FORCE
	@mkdir -p $(@D)
	@echo '$(GIT_NOW)' | cmp -s - $@ || echo '$(GIT_NOW)' >$@
$(BUILD)/src/bench/facts.c.o: EXTRA += -DQSWEEP_GIT='"$(GIT_NOW)"'
$(BUILD)/src/bench/facts.c.o: $(BUILD)/git
FORCE:

$(BUILD)/%.c.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(call say,CC,$<)
	$(Q)$(CC) $(ALL_CFLAGS) -MMD -MP -c $< -o $@

$(BUILD)/%.cu.o: %.cu $(BUILD)/flags
	@mkdir -p $(@D)
	$(call say,NVCC,$<)
	$(Q)$(NVCC) -std=c++17 $(NVFLAGS) $(ARCHES) -Isrc -I. -MMD -MP -c $< -o $@

# ---- tests -------------------------------------------------------------------------------------------------------
# A unit test is tests/{unit,golden}/test_*.c, linked with the library and cmocka. A flow test is an executable script
# tests/flow/test_*. Both print TAP; tests/run sums them up.
UNIT_SRC := $(sort $(wildcard tests/unit/test_*.c tests/golden/test_*.c))
UNIT_BIN := $(UNIT_SRC:%.c=$(BUILD)/%)
FLOW     := $(sort $(wildcard tests/flow/test_*.sh tests/flow/test_*.py))
FUZZ_SRC := $(sort $(wildcard tests/fuzz/fuzz_*.c))

$(BUILD)/tests/%: $(BUILD)/tests/%.c.o $(LIB) $(CUDA_OBJ) $(FABRIC_SOLO)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -pthread -o $@ $< $(FABRIC_SOLO) -Wl,--start-group $(LIB) $(CUDA_OBJ) -Wl,--end-group $(shell $(PKG) --libs cmocka) $(LIBS) $(CUDA_LIBS) $(LDFLAGS)

# A driver that is a text file, for tests of what we do with NVML (tests/fake/nvml.c).
FAKE_NVML := $(BUILD)/tests/fake/libnvidia-ml.so.1
$(FAKE_NVML): tests/fake/nvml.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(call say,CC,$@)
	$(Q)$(CC) -std=c11 -D_GNU_SOURCE $(WARN) -O1 -g -fPIC -shared -Wl,-soname,libnvidia-ml.so.1 -o $@ $<

unit: $(UNIT_BIN) $(FAKE_NVML) ## unit and golden tests alone
	@tests/run $(BUILD) $(UNIT_BIN)

test: ## the whole test suite; installs what is missing
	@jobs/setup.sh --for test
	@$(MAKE) --no-print-directory -j2 all test-programs
	@tests/run $(BUILD) $(UNIT_BIN) $(FLOW)

# Programs that flow tests call.
FLOW_BIN := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/flow/*.c))
test-programs: $(UNIT_BIN) $(FLOW_BIN) $(FAKE_NVML)

CLUSTER := $(sort $(wildcard tests/cluster/test_*.sh tests/cluster/test_*.py))
test-cluster: ## Slurm and several hosts on this machine: the scripts below slurm/ under test
	@jobs/setup.sh --for cluster
	@$(MAKE) --no-print-directory -j2 all
	@tests/run $(BUILD) $(CLUSTER)

# GPU tests and benchmarks are plain programs under tests/gpu; the scripts there say what runs and skip without a GPU.
GPU_BIN := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/gpu/test_*.c tests/gpu/bench_*.c))
$(BUILD)/tests/gpu/%: $(BUILD)/tests/gpu/%.c.o $(LIB) $(CUDA_OBJ) $(FABRIC_SOLO)
	$(CC) $(CFLAGS) -pthread -o $@ $< $(FABRIC_SOLO) -Wl,--start-group $(LIB) $(CUDA_OBJ) -Wl,--end-group $(LIBS) $(CUDA_LIBS) $(LDFLAGS)
gpu-programs: all $(GPU_BIN)
ifeq ($(CUDA),1)
test-gpu: gpu-programs $(BUILD)/tests/unit/test_backend_ops ## tests on an NVIDIA GPU (skipped without one); ONLY=WORD narrows
	@tests/gpu/test_gpu.sh $(BUILD)
bench-gpu: gpu-programs ## speed on an NVIDIA GPU: the card, time per stage, decode; ONLY=card|stages|mini|batch|pro
	@tests/gpu/bench_gpu.sh $(BUILD)
else
test-gpu bench-gpu:
	@echo "ok 1 - GPU tests and benchmarks # skip: built without CUDA"
endif

compare: ## BF16 against INT8 end to end: CHECKPOINT=DIR SAMPLES=N DEVICE=cpu|cuda FRESH=1
	@jobs/setup.sh --for report
	@$(MAKE) --no-print-directory -j2 all
	@BUILD=$(BUILD) jobs/compare.sh

# The published S1-mini's shape, synthesized once (1.7 GB under $(BUILD)/checkpoints).
bench: all ## share of the memory bandwidth that decoding reaches: CHECKPOINT=DIR BENCH="--frames 200"
	@[ -n "$(CHECKPOINT)" ] || [ -e $(BUILD)/checkpoints/s1-mini/config.json ] || \
	    $(BUILD)/qsweep synth $(BUILD)/checkpoints/s1-mini --shape s1-mini --seed 1 >&2
	@$(BUILD)/qsweep bench --checkpoint $(or $(CHECKPOINT),$(BUILD)/checkpoints/s1-mini) $(BENCH)

BENCH_CKPT ?= $(BUILD)/checkpoints/s1-mini-codec
bench-fleet: all $(BUILD)/tests/flow/make_results ## planning, merging 10,000 files, 64 ranks, 4,096 on paper
	@QSWEEP_BUILD=$(BUILD) /usr/bin/python3 tests/bench/fleet.py

bench-codec: all ## the codec alone, published shape, 215 frames: DEVICE=cpu|cuda BENCH="--chunk 108"
	@[ -e $(BENCH_CKPT)/codec.pth ] || $(BUILD)/qsweep synth $(BENCH_CKPT) --shape s1-mini --seed 1 --codec
	@$(BUILD)/qsweep codec bench $(BENCH_CKPT) --device $(or $(DEVICE),cpu) $(if $(filter cuda%,$(DEVICE)),--runs 20,--runs 3) $(BENCH)

asan: ## unit tests under AddressSanitizer and UBSan
	@$(MAKE) --no-print-directory -j2 unit BUILD=$(BUILD)/asan CUDA=0 CFLAGS="-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined"
tsan: ## unit tests under ThreadSanitizer
	@$(MAKE) --no-print-directory -j2 unit BUILD=$(BUILD)/tsan CUDA=0 CFLAGS="-O1 -g -fsanitize=thread"
cov: ## line coverage of the unit tests (gcov summary)
	@$(MAKE) --no-print-directory -j2 unit BUILD=$(BUILD)/cov CUDA=0 CFLAGS="-O0 -g --coverage"
	@cd $(BUILD)/cov && gcov -n -r $$(find src -name '*.o') 2>/dev/null | awk '/^File/{f=$$2} /^Lines/{print f, $$0}' | grep src/ | sort

# Fuzz targets link what reads bytes from outside, compiled by clang for coverage; the vector kernels, which take clang
# ten minutes under the sanitizers, are not part of it. Seeds are under tests/fuzz/seeds.
FUZZ_SECONDS ?= 5
FUZZ_BIN     := $(FUZZ_SRC:%.c=$(BUILD)/%)
FUZZ_LIB     := $(BUILD)/libparse.a
FUZZ_OBJ     := $(filter-out $(foreach d,backend launch cmd bench,$(BUILD)/src/$(d)/%),$(LIB_OBJ)) \
                $(patsubst %,$(BUILD)/src/%.c.o,backend/memory bench/result bench/stats bench/summary)
$(FUZZ_LIB): $(FUZZ_OBJ)
	@rm -f $@
	$(call say,AR,$@)
	$(Q)ar rcs $@ $^
$(BUILD)/tests/fuzz/%: $(BUILD)/tests/fuzz/%.c.o $(FUZZ_LIB)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -fsanitize=fuzzer -pthread -o $@ $< $(FUZZ_LIB) $(LIBS) $(LDFLAGS)
fuzz-programs: $(FUZZ_BIN)
fuzz-build:
	@$(MAKE) --no-print-directory -j2 fuzz-programs BUILD=$(BUILD)/fuzz CC=clang CUDA=0 MPI=0 CFLAGS="-O1 -g -fno-omit-frame-pointer -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined"
fuzz: fuzz-build ## every parser under libFuzzer, ASan and UBSan (clang): FUZZ_SECONDS=5 each
	@tests/fuzz/run $(BUILD)/fuzz $(FUZZ_SECONDS)

bundle: all man ## one relocatable archive for bare machines: build/qsweep-bundle-VERSION.tar.xz
	@jobs/bundle.sh $(BUILD) $(VERSION)
# Without line tables and packed for size an object of kernels has an eighth of its bytes (linear_int8: 4.4 MB, 0.5 MB).
PACK  = $(if $(NVCC),$(if $(shell $(NVCC) --help | grep -e --compress-mode),--compress-mode=size,-Xfatbin -compress-all))
release: ## the bundle with code for every card from A100 to H200, in build/release
	@$(MAKE) --no-print-directory -j2 bundle BUILD=$(BUILD)/release CUDA_ARCH="sm_80 sm_86 sm_89 sm_90" NVFLAGS="-O3 $(PACK)"

man: $(BUILD)/qsweep ## man pages and shell completion from the help texts: build/man, build/completion
	@jobs/man.sh $(BUILD) $(VERSION)

clean: ## remove the build folder
	rm -rf $(BUILD)
help: ## list these targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
.PHONY: bundle release man bench-fleet bench-codec fuzz fuzz-build fuzz-programs all bench compare unit test test-programs asan tsan cov clean help FORCE
.SECONDARY:
.DELETE_ON_ERROR:

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
