# Builds each tests/c/test_*.c with the C rooms (no torch, no Python) and runs it.
# Called by `make ctest` from the repository root. T=test_status runs one;
# SANITIZE=thread looks for races instead of wrong addresses. ARM=1 cross-compiles for
# 64-bit Arm and runs under qemu-user. PAGE=65536 makes sysconf tell of such pages.
ARM ?= 0
PAGE ?=
ifeq ($(ARM),1)
CC := aarch64-linux-gnu-gcc
SANITIZE := undefined
RUN := qemu-aarch64 $(if $(PAGE),-p $(PAGE)) -L /usr/aarch64-linux-gnu
OUT := build/ctest-arm
else
SANITIZE ?= address,undefined
OUT := build/ctest$(patsubst %,-%,$(filter thread none,$(SANITIZE)))
endif
CC ?= cc
FASTER := -fno-sanitize=null,object-size,alignment
CHECKS := $(patsubst %,-fsanitize=%,$(filter-out none,$(SANITIZE)))
CFLAGS := -std=c11 -O1 -g -fexceptions -Wall -Wextra -Wpedantic -Wshadow -Wconversion \
    -Wstrict-prototypes -ffp-contract=fast -fno-omit-frame-pointer \
    $(CHECKS) $(if $(CHECKS),-fno-sanitize-recover=all) \
    $(if $(filter 1,$(GNNOFFLOAD_WERROR)),-Werror)
LIMIT ?= 120
CPPFLAGS := -D_GNU_SOURCE -Icsrc -Itests/c

SOURCES := $(wildcard csrc/core/*.c csrc/cpu/*.c csrc/offload/*.c)
OBJECTS := $(patsubst %.c,$(OUT)/%.o,$(notdir $(SOURCES)))
HELPERS := $(patsubst tests/c/%.c,$(OUT)/%.o,$(filter-out tests/c/test_%,$(wildcard tests/c/*.c)))
TESTS := $(if $(T),$(T),$(patsubst tests/c/%.c,%,$(wildcard tests/c/test_*.c)))
vpath %.c csrc/core csrc/cpu csrc/offload tests/c

.PHONY: all $(TESTS)
.SECONDARY:
all: $(TESTS)

# A test passes by returning 0; its .ok file is what tests/conftest.py counts as proof.
$(TESTS): %: $(OUT)/%
	@rm -f $(OUT)/$@.ok
	@echo "  TEST $@$(if $(ARM:0=), on aarch64)$(if $(PAGE), with pages of $(PAGE) bytes)"
	@GNN_TEST_PAGE=$(PAGE) timeout $(LIMIT) $(RUN) $(OUT)/$@ && touch $(OUT)/$@.ok

$(OUT)/test_%: $(OUT)/test_%.o $(OBJECTS) $(HELPERS)
	@$(CC) $(CHECKS) -Wl,--wrap=sysconf $^ -lpthread -ldl -lm -o $@

$(OUT)/%.o: %.c tests/c/ctest.mk | $(OUT)
	@echo "  CC   $<"
	@$(CC) $(CFLAGS) $(CPPFLAGS) -MMD -c $< -o $@

# The row templates: debug symbols and these three checks take a minute more to compile.
$(OUT)/%_cpu.o: CFLAGS += -g0 $(if $(CHECKS),$(FASTER))

$(OUT):
	@mkdir -p $@

-include $(wildcard $(OUT)/*.d)
