/* exec_memory.cpp: the registry of device memory, shared memory and its poison. */
#include "exec_memory.h"
#include "exec_state.h"

#include <cstdio>
#include <cstdlib>
#include <link.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, bytes) ((void)(p), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(p, bytes) ((void)(p), (void)(bytes))
#endif

namespace exec {

std::map<uintptr_t, Region> regions;

/* ------------------------------------------------------------------------------- cells */

/* Address space; the system backs what is touched, with zeros. */
static Cell *no_cells_yet(size_t bytes) {
    void *p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        perror("executor: the shadow of device memory");
        abort();
    }
    return static_cast<Cell *>(p);
}

Cell *Region::cells_at(uintptr_t address) {
    const uintptr_t first = begin >> cell_shift;
    if (cells == nullptr) {
        cell_bytes = (((end - 1) >> cell_shift) + 1 - first) * sizeof(Cell);
        cells = no_cells_yet(cell_bytes);
    }
    return cells + ((address >> cell_shift) - first);
}

void Region::cells_of_bytes() {
    if (cell_shift == 0) {
        return;
    }
    Cell *old = cells;
    const size_t old_bytes = cell_bytes, first = begin / 2;
    cells = nullptr;
    cell_shift = 0;
    if (old == nullptr) {
        return;
    }
    for (uintptr_t a = begin; a < end; a++) {
        *cells_at(a) = old[a / 2 - first];
    }
    munmap(old, old_bytes);
}

void Region::forget_cells() {
    if (cells != nullptr) {
        munmap(cells, cell_bytes);
        cells = nullptr;
    }
}

/* ---------------------------------------------------------------------------- registry */

static Region *last_hit;

Region *region_of(uintptr_t address) {
    if (last_hit != nullptr && address - last_hit->begin < last_hit->size()) {
        return last_hit;
    }
    auto it = regions.upper_bound(address);
    if (it == regions.begin() || address >= (--it)->second.end) {
        return nullptr;
    }
    return last_hit = &it->second;
}

std::string describe(uintptr_t address) {
    enum { NEAR = 4096 };
    auto above = regions.upper_bound(address);
    const Region *after = above == regions.end() ? nullptr : &above->second;
    const Region *before =
        above == regions.begin() ? nullptr : &std::prev(above)->second;
    const uintptr_t past = before ? address - before->end : NEAR;
    const uintptr_t ahead = after ? after->begin - address : NEAR;
    if (before && address < before->end) {
        return before->kind == SHARED
                   ? before->name
                   : before->name + " + " + std::to_string(address - before->begin);
    }
    if (past < NEAR && past < ahead) {
        return std::to_string(past) + " bytes past the end of " + before->name + " [" +
               std::to_string(before->size()) + " bytes]";
    }
    if (ahead < NEAR) {
        return std::to_string(ahead) + " bytes before " + after->name + " [" +
               std::to_string(after->size()) + " bytes]";
    }
    return "outside device memory";
}

/* Replaces what lay there before: freed memory is remembered until it is used again. */
static void add_region(const void *p, size_t bytes, const char *name, Kind kind) {
    const uintptr_t begin = uintptr_t(p);
    last_hit = nullptr;
    auto it = regions.upper_bound(begin);
    if (it != regions.begin() &&
        (std::prev(it)->first == begin || std::prev(it)->second.end > begin)) {
        --it;
    }
    while (it != regions.end() && it->first < begin + std::max<size_t>(bytes, 1)) {
        it->second.forget_cells();
        it = regions.erase(it);
    }
    regions[begin] = Region{begin, begin + bytes, name, kind};
}

/* ------------------------------------------------------------------------ shared memory */

enum { SHARED_LIMIT = 48 << 10 };
alignas(128) static char dynamic_arena[SHARED_LIMIT];
static size_t dynamic_bytes;
static char *static_shared; // the thread-local segment of this library
static size_t static_bytes;
static __thread volatile char touched; // makes that segment exist

/* The segment of `module`, if that is this library. */
static int find_static(struct dl_phdr_info *module, size_t, void *) {
    for (int i = 0; i < module->dlpi_phnum; i++) {
        const auto &p = module->dlpi_phdr[i];
        char *begin = static_cast<char *>(module->dlpi_tls_data);
        if (p.p_type == PT_TLS && size_t(&touched - begin) < p.p_memsz) {
            static_shared = begin, static_bytes = p.p_memsz;
        }
    }
    return 0;
}

bool shared_memory_start(size_t bytes) {
    if (bytes > SHARED_LIMIT) {
        return false;
    }
    dynamic_bytes = bytes;
    ASAN_UNPOISON_MEMORY_REGION(dynamic_arena, bytes);
    ASAN_POISON_MEMORY_REGION(dynamic_arena + bytes, SHARED_LIMIT - bytes);
    add_region(dynamic_arena, bytes, "dynamic shared memory", SHARED);
    touched = 1;
    dl_iterate_phdr(find_static, nullptr); // each thread of the process has its own
    add_region(static_shared, static_bytes, "shared memory", SHARED);
    return true;
}

/* Bytes of ones: a NaN of each floating type, -1 as an index. */
void shared_memory_poison() {
    memset(static_shared, 0xff, static_bytes);
    memset(dynamic_arena, 0xff, dynamic_bytes);
}

void *dynamic_shared(size_t) {
    return dynamic_arena;
}

/* --------------------------------------------------------------------------- constants */

static uintptr_t call_begin, call_end;

void launch_memory(const void *call, size_t bytes) {
    call_begin = uintptr_t(call), call_end = call_begin + bytes;
}

struct Segments { // of the library that holds the kernels, without write access
    uintptr_t begin[8], end[8];
    int n;
};

static int find_segments(struct dl_phdr_info *module, size_t, void *data) {
    Segments *s = static_cast<Segments *>(data);
    const uintptr_t here = uintptr_t(&find_segments);
    Segments found = {};
    bool mine = false;
    for (int i = 0; i < module->dlpi_phnum; i++) {
        const auto &p = module->dlpi_phdr[i];
        const uintptr_t begin = module->dlpi_addr + p.p_vaddr;
        if (p.p_type != PT_LOAD) {
            continue;
        }
        mine |= here - begin < p.p_memsz;
        if (!(p.p_flags & PF_W) && found.n < 8) {
            found.begin[found.n] = begin, found.end[found.n++] = begin + p.p_memsz;
        }
    }
    if (mine) {
        *s = found;
    }
    return mine;
}

bool is_constant(uintptr_t address, size_t bytes) {
    static Segments constants;
    if (address >= call_begin && address + bytes <= call_end) {
        return true;
    }
    if (constants.n == 0) {
        dl_iterate_phdr(find_segments, &constants);
    }
    for (int i = 0; i < constants.n; i++) {
        if (address >= constants.begin[i] && address + bytes <= constants.end[i]) {
            return true;
        }
    }
    return false;
}

} // namespace exec

/* ------------------------------------------------------------- control, for the tests */

extern "C" {
/* kind 0: an input, 1: an output without contents */
void exec_memory(const void *p, int64_t bytes, const char *name, int kind) {
    exec::add_region(p, size_t(bytes), name, exec::Kind(kind));
}

void exec_free(const void *p) {
    auto it = exec::regions.find(uintptr_t(p));
    if (it != exec::regions.end()) {
        it->second.kind = exec::FREED;
        it->second.forget_cells();
    }
}

/* which 0: sectors of 32 bytes, 1: requests of a warp; -1: no such memory */
int64_t exec_traffic(const void *p, int written, int which) {
    auto it = exec::regions.find(uintptr_t(p));
    if (it == exec::regions.end()) {
        return -1;
    }
    return (which == 0 ? it->second.sectors : it->second.requests)[written];
}
}
