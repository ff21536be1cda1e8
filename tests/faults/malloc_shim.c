/* malloc_shim.c: allocations of one shared object that fail on purpose, and a count of
 * those still alive. Preloaded into a Python by test_allocations.py.
 *
 * Calls of malloc, calloc and realloc, or of posix_memalign (torch's tensors), whose
 * return address lies in the watched object count down; at zero they fail, once or from
 * then on. Everybody else's calls pass. What the object allocated is kept in a table
 * until it is freed, by whomever.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <link.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t n, size_t bytes);
void *__libc_memalign(size_t alignment, size_t bytes);
void *__libc_realloc(void *old, size_t bytes);
void __libc_free(void *memory);

enum { ROOM = 1 << 20 };
static void *alive[ROOM]; // open addressing; TOMB: was one
#define TOMB ((void *)1)
static int64_t n_alive, calls, failed;
static int64_t left = -1; // calls that work before one fails; -1: not armed
static bool for_ever;
static uintptr_t begin, end; // the watched object's text
static bool aligned;         // only its posix_memalign counts
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static size_t home(const void *memory) {
    return ((uintptr_t)memory >> 4) * 0x9e3779b97f4a7c15u >> 44; // 20 bits
}

static void remember(void *memory) {
    size_t i = home(memory);
    while (alive[i] && alive[i] != TOMB) {
        i = (i + 1) % ROOM;
    }
    alive[i] = memory;
    n_alive++;
}

static void forget(const void *memory) {
    for (size_t i = home(memory); alive[i]; i = (i + 1) % ROOM) {
        if (alive[i] == memory) {
            alive[i] = TOMB;
            n_alive--;
            return;
        }
    }
}

static bool is_ours(const void *caller) {
    return (uintptr_t)caller >= begin && (uintptr_t)caller < end;
}

static bool is_counted(const void *caller) {
    return !aligned && is_ours(caller);
}

/* Must this call fail? Called with the lock. */
static bool fails(void) {
    calls++;
    if (left < 0 || left-- > 0) {
        return false;
    }
    if (for_ever) {
        left = 0;
    }
    failed++;
    errno = ENOMEM;
    return true;
}

static void *counted(void *(*allocate)(void *old, size_t bytes), void *old,
                     size_t bytes) {
    pthread_mutex_lock(&lock);
    void *memory = NULL;
    if (!fails() && (memory = allocate(old, bytes)) != NULL) {
        forget(old);
        remember(memory);
    }
    pthread_mutex_unlock(&lock);
    return memory;
}

static void *fresh(void *old, size_t bytes) {
    (void)old;
    return __libc_malloc(bytes);
}

static void *zeroed(void *old, size_t bytes) {
    (void)old;
    return __libc_calloc(1, bytes);
}

void *malloc(size_t bytes) {
    return is_counted(__builtin_return_address(0)) ? counted(fresh, NULL, bytes)
                                                   : __libc_malloc(bytes);
}

void *calloc(size_t n, size_t bytes) {
    return is_counted(__builtin_return_address(0)) ? counted(zeroed, NULL, n * bytes)
                                                   : __libc_calloc(n, bytes);
}

void *realloc(void *old, size_t bytes) {
    return is_counted(__builtin_return_address(0)) ? counted(__libc_realloc, old, bytes)
                                                   : __libc_realloc(old, bytes);
}

int posix_memalign(void **memory, size_t alignment, size_t bytes) {
    if (!aligned || !is_ours(__builtin_return_address(0))) {
        *memory = __libc_memalign(alignment, bytes);
        return *memory ? 0 : ENOMEM;
    }
    pthread_mutex_lock(&lock);
    const bool fail = fails();
    if (!fail && (*memory = __libc_memalign(alignment, bytes)) != NULL) {
        remember(*memory);
    }
    pthread_mutex_unlock(&lock);
    return fail || !*memory ? ENOMEM : 0;
}

void free(void *memory) {
    if (memory && n_alive > 0) {
        pthread_mutex_lock(&lock);
        forget(memory);
        pthread_mutex_unlock(&lock);
    }
    __libc_free(memory);
}

/* ------------------------------------------------------------- called through ctypes */

static int find(struct dl_phdr_info *info, size_t size, void *name) {
    (void)size;
    const char *base = strrchr(info->dlpi_name, '/');
    if (!base || strcmp(base + 1, name) != 0) {
        return 0;
    }
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[i];
        if (part->p_type == PT_LOAD && (part->p_flags & PF_X)) {
            begin = info->dlpi_addr + part->p_vaddr;
            end = begin + part->p_memsz;
        }
    }
    return 1;
}

/* Watches the loaded object of this file name, or only its posix_memalign; false when
 * there is none. */
bool shim_watch(const char *name, bool aligned_only);
bool shim_watch(const char *name, bool aligned_only) {
    aligned = aligned_only;
    return dl_iterate_phdr(find, (void *)(uintptr_t)name) == 1;
}

/* The allocation after `after` more fails, and with ever all that follow. */
void shim_arm(int64_t after, bool ever);
void shim_arm(int64_t after, bool ever) {
    pthread_mutex_lock(&lock);
    left = after;
    for_ever = ever;
    failed = 0;
    pthread_mutex_unlock(&lock);
}

/* Disarms; how many allocations failed. */
int64_t shim_disarm(void);
int64_t shim_disarm(void) {
    pthread_mutex_lock(&lock);
    left = -1;
    const int64_t count = failed;
    pthread_mutex_unlock(&lock);
    return count;
}

int64_t shim_calls(void); // allocations so far
int64_t shim_calls(void) {
    return calls;
}

int64_t shim_alive(void); // of those, not freed yet
int64_t shim_alive(void) {
    return n_alive;
}
