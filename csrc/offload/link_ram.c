/* link_ram.c: RAM to RAM, for tests and benchmarks: the engine's rules without a
 * disk's noise. The far side is one reserved range of addresses that becomes usable
 * as the tier grows, so it never moves under a copy and a stray access faults. */
#include "offload/link_host.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Up to RAM_SMALL bytes the caller copies itself: 32 KiB take about 5 microseconds,
 * waking a worker and being interrupted by it takes more. */
enum { RAM_ALIGN = 4096, RAM_CHUNK = 1 << 20, RAM_SMALL = 32 << 10 };

typedef struct ram_link {
    gnn_host_link host;
    char *far;
    pthread_mutex_t mutex; // guards what follows
    pthread_cond_t lifted;
    bool hold;
    int64_t fail_in[2]; // [out] chunks until one fails; 0: none
    gnn_status fail_status[2];
} ram_link;

static gnn_status pass_controls(ram_link *link, bool out) {
    pthread_mutex_lock(&link->mutex);
    while (link->hold) {
        pthread_cond_wait(&link->lifted, &link->mutex);
    }
    bool fails = link->fail_in[out] > 0 && --link->fail_in[out] == 0;
    gnn_status status = link->fail_status[out];
    pthread_mutex_unlock(&link->mutex);
    return fails ? gnn_fail(status, "link_ram: injected failure of a %s",
                            out ? "put" : "get")
                 : GNN_OK;
}

static gnn_status copy_chunk(void *context, const gnn_chunk *chunk) {
    ram_link *link = context;
    char *far = link->far + chunk->offset;
    GNN_TRY(pass_controls(link, chunk->out));
    memcpy(chunk->out ? far : chunk->near, chunk->out ? chunk->near : far,
           (size_t)chunk->bytes);
    return GNN_OK;
}

/* While a test holds copies or has armed a failure the workers make all of them. */
static bool is_small(ram_link *link, int64_t bytes) {
    pthread_mutex_lock(&link->mutex);
    bool controlled = link->hold || link->fail_in[0] || link->fail_in[1];
    pthread_mutex_unlock(&link->mutex);
    return bytes <= RAM_SMALL && !controlled;
}

static gnn_status ram_put(gnn_link *self, gnn_slot slot, const void *near,
                          gnn_mark after, gnn_ticket *ticket) {
    ram_link *link = (ram_link *)self;
    if (gnn_host_link_forked(&link->host) || !is_small(link, slot.bytes)) {
        return gnn_host_put(self, slot, near, after, ticket);
    }
    gnn_copy copy = {.out = true, .slot = slot, .near = (void *)(uintptr_t)near};
    *ticket = 0;
    return gnn_copy_now(link->host.copies, &copy);
}

static gnn_status ram_get(gnn_link *self, gnn_slot slot, void *near, gnn_mark after,
                          gnn_ticket after_put, gnn_ticket *ticket) {
    ram_link *link = (ram_link *)self;
    if (after_put || gnn_host_link_forked(&link->host) || !is_small(link, slot.bytes)) {
        return gnn_host_get(self, slot, near, after, after_put, ticket);
    }
    gnn_copy copy = {.slot = slot, .near = near};
    *ticket = 0;
    return gnn_copy_now(link->host.copies, &copy);
}

static gnn_status grow(gnn_host_link *host, int64_t bytes) {
    ram_link *link = (ram_link *)host;
    GNN_REQUIRE(!mprotect(link->far, (size_t)bytes, PROT_READ | PROT_WRITE), GNN_EFULL,
                "link_ram: cannot grow to %lld bytes: %s", (long long)bytes,
                strerror(errno));
    return GNN_OK;
}

void gnn_link_ram_hold(gnn_link *self, bool hold) {
    ram_link *link = (ram_link *)self;
    pthread_mutex_lock(&link->mutex);
    link->hold = hold;
    pthread_cond_broadcast(&link->lifted);
    pthread_mutex_unlock(&link->mutex);
}

void gnn_link_ram_fail(gnn_link *self, bool out, int64_t nth, gnn_status status) {
    ram_link *link = (ram_link *)self;
    pthread_mutex_lock(&link->mutex);
    link->fail_in[out] = nth;
    link->fail_status[out] = status;
    pthread_mutex_unlock(&link->mutex);
}

static void ram_close(gnn_link *self) {
    ram_link *link = (ram_link *)self;
    int64_t limit = link->host.slots.limit;
    if (!gnn_host_link_forked(&link->host)) {
        gnn_link_ram_hold(self, false);
        gnn_host_link_close(&link->host);
        pthread_cond_destroy(&link->lifted);
        pthread_mutex_destroy(&link->mutex);
    }
    munmap(link->far, (size_t)limit);
    free(link);
}

static const gnn_link_ops ram_ops = {.name = "ram",
                                     GNN_HOST_LINK_OPS,
                                     .put = ram_put,
                                     .get = ram_get,
                                     .close = ram_close};

gnn_status gnn_link_ram_open(int64_t limit, int threads, gnn_link **out) {
    GNN_REQUIRE(limit >= RAM_ALIGN, GNN_EINVAL,
                "link_ram: limit must be at least %d, got %lld", RAM_ALIGN,
                (long long)limit);
    limit &= ~(int64_t)(RAM_ALIGN - 1);
    ram_link *link = calloc(1, sizeof *link);
    GNN_REQUIRE(link, GNN_ENOMEM, "link_ram: no memory for a link");
    link->host.link.ops = &ram_ops;
    link->host.grow = grow;
    link->far = mmap(NULL, (size_t)limit, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (link->far == MAP_FAILED) {
        free(link);
        return gnn_fail(GNN_ENOMEM, "link_ram: cannot reserve %lld bytes: %s",
                        (long long)limit, strerror(errno));
    }
    pthread_mutex_init(&link->mutex, NULL);
    pthread_cond_init(&link->lifted, NULL);
    gnn_status status = gnn_host_link_open(&link->host, limit, RAM_ALIGN, copy_chunk,
                                           threads, RAM_CHUNK);
    if (status != GNN_OK) {
        pthread_cond_destroy(&link->lifted);
        pthread_mutex_destroy(&link->mutex);
        munmap(link->far, (size_t)limit);
        free(link);
        return status;
    }
    *out = &link->host.link;
    return GNN_OK;
}
