/* link_file.c: RAM to an unnamed spill file, by worker threads with pread and pwrite.
 *
 * With direct I/O a chunk goes straight from the tensor when its address is aligned,
 * else through the worker's bounce buffer; the last piece, padded to whole disk blocks,
 * always does. Without it, writes are pushed to the disk and dropped from the page
 * cache behind the copy, since the page cache would otherwise be a hidden tier that
 * holds what we claim to have moved out. Each chunk's checksum is kept in memory and
 * compared on the way back: a read gives the bytes written or fails.
 */
#include "mutants.h"
#include "offload/checksums.h"
#include "offload/file_calls.h"
#include "offload/link_host.h"
#include "offload/spill_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { FILE_CHUNK = 2 << 20, DEFAULT_THREADS = 2 };
static const int64_t MAX_FILE = (int64_t)1 << 44; // 16 TiB, ext4's largest file

typedef struct file_link {
    gnn_host_link host;
    gnn_spill_file file;
    gnn_checksums checksums;
    char *bounce; // [2 * threads] buffers of FILE_CHUNK bytes, NULL without direct I/O
    size_t bounce_bytes;
} file_link;

/* ----------------------------------------------------------------------- direct I/O */

/* How much of a chunk can go straight between the tensor and the file. */
static int64_t straight_bytes(const file_link *link, const gnn_chunk *chunk) {
    bool aligned = (uintptr_t)chunk->near % (uintptr_t)link->file.pointer_align == 0;
    return aligned ? chunk->bytes - chunk->bytes % link->file.align : 0;
}

static gnn_status write_direct(file_link *link, const gnn_chunk *chunk) {
    int64_t straight = straight_bytes(link, chunk), rest = chunk->bytes - straight;
    GNN_TRY(gnn_spill_write(&link->file, chunk->near, straight, chunk->offset));
    if (rest) {
        int64_t padded = gnn_slots_round(&link->host.slots, rest);
        char *bounce = link->bounce + (int64_t)chunk->worker * FILE_CHUNK;
        memcpy(bounce, chunk->near + straight, (size_t)rest);
        memset(bounce + rest, 0, (size_t)(padded - rest));
        GNN_TRY(gnn_spill_write(&link->file, bounce, padded, chunk->offset + straight));
    }
    return GNN_OK;
}

static gnn_status read_direct(file_link *link, const gnn_chunk *chunk) {
    int64_t straight = straight_bytes(link, chunk), rest = chunk->bytes - straight;
    GNN_TRY(gnn_spill_read(&link->file, chunk->near, straight, chunk->offset));
    if (rest) {
        int64_t padded = gnn_slots_round(&link->host.slots, rest);
        char *bounce = link->bounce + (int64_t)chunk->worker * FILE_CHUNK;
        GNN_TRY(gnn_spill_read(&link->file, bounce, padded, chunk->offset + straight));
        memcpy(chunk->near + straight, bounce, (size_t)rest);
    }
    return GNN_OK;
}

/* ----------------------------------------------------------- through the page cache */

/* Waits until the pages are on disk, so that they can be dropped. Where ranges
 * cannot be synchronised the whole file is. */
static gnn_status push_out(const file_link *link, const gnn_chunk *chunk) {
    unsigned all = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                   SYNC_FILE_RANGE_WAIT_AFTER;
    int fd = link->file.fd, failed;
    do {
        failed =
            gnn_file_calls_now()->sync_file_range(fd, chunk->offset, chunk->bytes, all);
    } while (failed && errno == EINTR);
    if (failed && (errno == ENOSYS || errno == ESPIPE || errno == EINVAL)) {
        failed = fdatasync(fd);
    }
    GNN_REQUIRE(!failed, errno == ENOSPC || errno == EDQUOT ? GNN_EFULL : GNN_EIO,
                "writing back %lld bytes of the spill file in %s: %s",
                (long long)chunk->bytes, link->file.directory, strerror(errno));
    return GNN_OK;
}

static gnn_status copy_cached(file_link *link, const gnn_chunk *chunk) {
    if (chunk->out) {
        GNN_TRY(gnn_spill_write(&link->file, chunk->near, chunk->bytes, chunk->offset));
        GNN_MUTANT(write_back_unchecked, GNN_TRY(push_out(link, chunk)),
                   push_out(link, chunk));
    } else {
        GNN_TRY(gnn_spill_read(&link->file, chunk->near, chunk->bytes, chunk->offset));
    }
    int64_t pages = gnn_slots_round(&link->host.slots, chunk->bytes);
    posix_fadvise(link->file.fd, chunk->offset, pages, POSIX_FADV_DONTNEED);
    return GNN_OK;
}

static gnn_status copy_chunk(void *context, const gnn_chunk *chunk) {
    file_link *link = context;
    uint64_t *written = gnn_checksum_at(&link->checksums, chunk->offset);
    if (chunk->out) {
        *written = gnn_checksum(chunk->near, chunk->bytes);
    }
    GNN_TRY(!link->file.direct ? copy_cached(link, chunk)
            : chunk->out       ? write_direct(link, chunk)
                               : read_direct(link, chunk));
    GNN_REQUIRE(
        chunk->out || *written == gnn_checksum(chunk->near, chunk->bytes), GNN_EIO,
        "the spill file in %s: what %lld bytes at offset %lld hold is not what was "
        "written",
        link->file.directory, (long long)chunk->bytes, (long long)chunk->offset);
    return GNN_OK;
}

/* ------------------------------------------------------------------- open and close */

static gnn_status grow(gnn_host_link *host, int64_t bytes) {
    file_link *link = (file_link *)host;
    GNN_TRY(gnn_checksums_grow(&link->checksums, bytes));
    return gnn_spill_grow(&link->file, host->slots.end, bytes);
}

static void release(file_link *link) {
    if (link->bounce) {
        munmap(link->bounce, link->bounce_bytes);
    }
    gnn_checksums_clear(&link->checksums);
    gnn_spill_close(&link->file);
    free(link);
}

static void file_close(gnn_link *self) {
    file_link *link = (file_link *)self;
    if (!gnn_host_link_forked(&link->host)) {
        gnn_host_link_close(&link->host);
    }
    release(link);
}

static const gnn_link_ops file_ops = {.name = "file",
                                      GNN_HOST_LINK_OPS,
                                      .put = gnn_host_put,
                                      .get = gnn_host_get,
                                      .close = file_close};

static gnn_status make_bounce(file_link *link, int threads) {
    link->bounce_bytes = (size_t)threads * 2 * FILE_CHUNK;
    char *bounce = mmap(NULL, link->bounce_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    GNN_REQUIRE(bounce != MAP_FAILED, GNN_ENOMEM, "link_file: no memory for buffers");
    link->bounce = bounce;
    return GNN_OK;
}

static gnn_status open_link(file_link *link, const gnn_link_file_options *options) {
    int threads = options->threads ? options->threads : DEFAULT_THREADS;
    GNN_REQUIRE(threads >= 1 && threads <= 64, GNN_EINVAL,
                "link_file: threads must be in 0..64, got %d", threads);
    GNN_REQUIRE(options->limit >= 0, GNN_EINVAL,
                "link_file: limit must be 0 bytes or more, got %lld",
                (long long)options->limit);
    GNN_TRY(gnn_spill_open(options->directory, options->allow_memory_backed,
                           options->direct, &link->file));
    link->host.grow = grow;
    link->host.page_cache = !link->file.direct;
    if (link->file.direct) {
        GNN_TRY(make_bounce(link, threads));
    }
    int64_t limit = options->limit < MAX_FILE ? options->limit : MAX_FILE;
    GNN_TRY(gnn_checksums_init(&link->checksums, limit));
    return gnn_host_link_open(&link->host, limit, link->file.align, copy_chunk, threads,
                              FILE_CHUNK);
}

gnn_status gnn_link_file_open(const gnn_link_file_options *options, gnn_link **out) {
    GNN_REQUIRE(options->directory, GNN_EINVAL, "link_file: directory is missing");
    file_link *link = calloc(1, sizeof *link);
    GNN_REQUIRE(link, GNN_ENOMEM, "link_file: no memory for a link");
    link->host.link.ops = &file_ops;
    link->file.fd = -1;
    gnn_status status = open_link(link, options);
    if (status != GNN_OK) {
        release(link);
        return status;
    }
    *out = &link->host.link;
    return GNN_OK;
}

void gnn_link_file_info(gnn_link *self, const char **file_system, bool *direct) {
    const file_link *link = (const file_link *)self;
    *file_system = link->file.file_system;
    *direct = link->file.direct;
}
