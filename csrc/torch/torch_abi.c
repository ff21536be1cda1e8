/* torch_abi.c: fills the function table with dlsym on the libtorch already loaded. */
#include "torch/torch_abi.h"

#include <dlfcn.h>
#include <string.h>

struct torch_abi torch_abi;

struct slot {
    const char *name;
    size_t offset;
    enum { REQUIRED, OPTIONAL, CUDA } kind;
};

#define SLOT_REQUIRED(result, name, parameters)                                        \
    {#name, offsetof(struct torch_abi, name), REQUIRED},
#define SLOT_OPTIONAL(result, name, parameters)                                        \
    {#name, offsetof(struct torch_abi, name), OPTIONAL},
#define SLOT_CUDA(result, name, parameters)                                            \
    {#name, offsetof(struct torch_abi, name), CUDA},
static const struct slot slots[] = {TORCH_ABI_REQUIRED(
    SLOT_REQUIRED) TORCH_ABI_OPTIONAL(SLOT_OPTIONAL) TORCH_ABI_CUDA(SLOT_CUDA)};
static const size_t n_slots = sizeof slots / sizeof slots[0];

bool torch_abi_load(const char *path, const char **missing) {
    struct torch_abi table;
    memset(&table, 0, sizeof table);

    /* RTLD_NOLOAD: we never load a torch of our own, and never a second one. */
    void *library = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
    if (!library && path) {
        library = dlopen(path, RTLD_LAZY | RTLD_NOLOAD);
    }
    if (!library) {
        *missing = "libtorch_cpu.so";
        return false;
    }
    void *cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    for (size_t i = 0; i < n_slots; i++) {
        void *where = slots[i].kind == CUDA ? cuda : library;
        void *symbol = where ? dlsym(where, slots[i].name) : NULL;
        if (!symbol && slots[i].kind == REQUIRED) {
            *missing = slots[i].name;
            dlclose(library);
            return false;
        }
        memcpy((char *)&table + slots[i].offset, &symbol, sizeof symbol);
    }
    torch_abi = table; /* the library stays open for the life of the process */
    return true;
}

bool torch_abi_slot(size_t index, const char **name, bool *found, bool *required) {
    if (index >= n_slots) {
        return false;
    }
    void *symbol;
    memcpy(&symbol, (const char *)&torch_abi + slots[index].offset, sizeof symbol);
    *name = slots[index].name;
    *found = symbol != NULL;
    *required = slots[index].kind == REQUIRED;
    return true;
}
