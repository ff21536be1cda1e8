/* file_calls.c: the real calls, and which table is in use. */
#include "offload/file_calls.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stddef.h>
#include <unistd.h>

static int call_openat(int directory, const char *path, int flags, mode_t mode) {
    return openat(directory, path, flags, mode);
}

static const gnn_file_calls real = {
    .openat = call_openat,
    .pread = pread,
    .pwrite = pwrite,
    .fallocate = fallocate,
    .ftruncate = ftruncate,
    .sync_file_range = sync_file_range,
};

static _Atomic(const gnn_file_calls *) now = &real;

const gnn_file_calls *gnn_file_calls_real(void) {
    return &real;
}

const gnn_file_calls *gnn_file_calls_now(void) {
    return atomic_load(&now);
}

void gnn_file_calls_set(const gnn_file_calls *calls) {
    atomic_store(&now, calls ? calls : &real);
}
