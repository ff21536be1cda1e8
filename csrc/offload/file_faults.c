/* file_faults.c: a table of calls that count, and fail when their turn has come. */
#include "offload/file_faults.h"
#include "offload/file_calls.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

enum call { OPENAT, PREAD, PWRITE, FALLOCATE, FTRUNCATE, SYNC_FILE_RANGE, CALLS };
static const char *const names[CALLS] = {"openat",    "pread",     "pwrite",
                                         "fallocate", "ftruncate", "sync_file_range"};

static enum call armed = CALLS;
static gnn_file_fault fault;
static atomic_llong calls_seen, hits;

/* Whether this call fails. errno is set then, unless the fault is a short transfer. */
static bool strikes(enum call call) {
    if (call != armed) {
        return false;
    }
    long long at = atomic_fetch_add(&calls_seen, 1) - fault.after;
    if (at < 0 || (fault.times >= 0 && at >= fault.times)) {
        return false;
    }
    atomic_fetch_add(&hits, 1);
    if (fault.error == EINTR) { // retried for ever: do not take the core meanwhile
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    if (fault.error) {
        errno = fault.error;
    }
    return true;
}

/* A part of a transfer, with an odd count: the caller has to look, not to assume. What is
 * moved are the whole disk blocks that direct I/O asks for, and nothing behind them. */
enum { DISK_BLOCK = 4096 };

static size_t shorten(size_t bytes) {
    return bytes > 2 ? (bytes / 2) | 1 : bytes;
}

static size_t blocks_of(size_t part, size_t whole) {
    size_t blocks = (part + DISK_BLOCK - 1) / DISK_BLOCK * DISK_BLOCK;
    return blocks < whole ? blocks : whole;
}

static ssize_t at_most(ssize_t moved, size_t part) {
    return moved > (ssize_t)part ? (ssize_t)part : moved;
}

static int faulty_openat(int directory, const char *path, int flags, mode_t mode) {
    return strikes(OPENAT)
               ? -1
               : gnn_file_calls_real()->openat(directory, path, flags, mode);
}

static ssize_t faulty_pread(int fd, void *buffer, size_t bytes, off_t offset) {
    bool struck = strikes(PREAD);
    if (struck && fault.error) {
        return -1;
    }
    size_t part = struck ? shorten(bytes) : bytes;
    return at_most(
        gnn_file_calls_real()->pread(fd, buffer, blocks_of(part, bytes), offset), part);
}

static ssize_t faulty_pwrite(int fd, const void *buffer, size_t bytes, off_t offset) {
    bool struck = strikes(PWRITE);
    if (struck && fault.error) {
        return -1;
    }
    size_t part = struck ? shorten(bytes) : bytes;
    return at_most(
        gnn_file_calls_real()->pwrite(fd, buffer, blocks_of(part, bytes), offset),
        part);
}

static int faulty_fallocate(int fd, int mode, off_t offset, off_t bytes) {
    return strikes(FALLOCATE)
               ? -1
               : gnn_file_calls_real()->fallocate(fd, mode, offset, bytes);
}

static int faulty_ftruncate(int fd, off_t bytes) {
    return strikes(FTRUNCATE) ? -1 : gnn_file_calls_real()->ftruncate(fd, bytes);
}

static int faulty_sync(int fd, off_t offset, off_t bytes, unsigned flags) {
    return strikes(SYNC_FILE_RANGE)
               ? -1
               : gnn_file_calls_real()->sync_file_range(fd, offset, bytes, flags);
}

static const gnn_file_calls faulty = {
    .openat = faulty_openat,
    .pread = faulty_pread,
    .pwrite = faulty_pwrite,
    .fallocate = faulty_fallocate,
    .ftruncate = faulty_ftruncate,
    .sync_file_range = faulty_sync,
};

gnn_status gnn_file_fault_set(const gnn_file_fault *wanted) {
    gnn_file_calls_set(NULL);
    armed = CALLS;
    if (!wanted) {
        return GNN_OK;
    }
    for (int call = 0; call < CALLS; call++) {
        if (!strcmp(wanted->call, names[call])) {
            fault = *wanted;
            armed = (enum call)call;
            atomic_store(&calls_seen, 0);
            atomic_store(&hits, 0);
            gnn_file_calls_set(&faulty);
            return GNN_OK;
        }
    }
    return gnn_fail(GNN_EINVAL, "file_fault: there is no call %s", wanted->call);
}

int64_t gnn_file_fault_hits(void) {
    return atomic_load(&hits);
}
