/* link_checks.h: what the link tests share: CHECK, filled buffers, a copy out and
 * back. */
#ifndef GNN_LINK_CHECKS_H
#define GNN_LINK_CHECKS_H

#include "offload/link.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB ((int64_t)1 << 20)
#define CHECK(condition)                                                               \
    do {                                                                               \
        if (!(condition)) {                                                            \
            printf("%s:%d: %s (%s)\n", __FILE__, __LINE__, #condition, gnn_message()); \
            exit(1);                                                                   \
        }                                                                              \
    } while (0)

static inline void fill(char *at, int64_t bytes, uint32_t seed) {
    for (int64_t b = 0; b < bytes; b++) {
        seed = seed * 1664525u + 1013904223u;
        at[b] = (char)(seed >> 24);
    }
}

static inline void finish(gnn_link *link, gnn_ticket ticket) {
    CHECK(link->ops->wait(link, ticket) == GNN_OK);
    link->ops->ticket_free(link, ticket);
}

/* Out and back of `bytes` at an address `shift` off a page, the get queued behind
 * the put; bytes around the target stay untouched. */
static inline void roundtrip(gnn_link *link, int64_t bytes, int64_t shift) {
    char *near, *back;
    size_t size = (size_t)(bytes + shift + 1);
    CHECK(!posix_memalign((void **)&near, 4096, size));
    CHECK(!posix_memalign((void **)&back, 4096, size));
    gnn_slot slot;
    gnn_ticket put, get;
    fill(near, (int64_t)size, (uint32_t)bytes);
    memset(back, 0x77, size);
    CHECK(link->ops->slot_alloc(link, bytes, &slot) == GNN_OK && slot.bytes == bytes);
    CHECK(link->ops->put(link, slot, near + shift, 0, &put) == GNN_OK);
    CHECK(link->ops->get(link, slot, back + shift, 0, put, &get) == GNN_OK);
    finish(link, get);
    finish(link, put);
    CHECK(memcmp(near + shift, back + shift, (size_t)bytes) == 0);
    CHECK(back[bytes + shift] == 0x77 && (shift == 0 || back[shift - 1] == 0x77));
    CHECK(link->ops->slot_free(link, slot) == GNN_OK);
    free(near);
    free(back);
}

typedef struct hammer_task {
    gnn_link *link;
    unsigned seed;
    int rounds;
} hammer_task;

static inline void *hammer_thread(void *argument) {
    hammer_task *task = argument;
    for (int round = 0; round < task->rounds; round++) {
        int64_t most =
            round % 3 ? 3 * MIB : MIB / 16; // some small enough to be at once
        roundtrip(task->link, 1 + (int64_t)(rand_r(&task->seed) % most), round % 9);
    }
    return NULL;
}

/* Four threads copy out and back at once; afterwards the books balance. */
static inline void hammer(gnn_link *link, int rounds) {
    pthread_t threads[4];
    hammer_task tasks[4];
    gnn_link_stats before, after;
    link->ops->stats(link, &before);
    for (unsigned t = 0; t < 4; t++) {
        tasks[t] = (hammer_task){link, t, rounds};
        CHECK(!pthread_create(&threads[t], NULL, hammer_thread, &tasks[t]));
    }
    for (int t = 0; t < 4; t++) {
        pthread_join(threads[t], NULL);
    }
    link->ops->stats(link, &after);
    CHECK(after.copies_out == before.copies_out + 4 * rounds);
    CHECK(after.copies_in == before.copies_in + 4 * rounds);
    CHECK(after.bytes_out - before.bytes_out == after.bytes_in - before.bytes_in);
    CHECK(after.slot_bytes == 0 && after.slot_peak > 0);
}

/* What a forked child may do with its parent's link: be told so, and close it. */
static inline int use_in_child(gnn_link *link, gnn_slot slot, gnn_ticket ticket) {
    char near[64];
    bool done;
    gnn_ticket other;
    gnn_link_stats stats;
    int right = link->ops->wait(link, ticket) == GNN_ESTATE &&
                strstr(gnn_message(), "fork") &&
                link->ops->poll(link, ticket, &done) == GNN_ESTATE &&
                link->ops->put(link, slot, near, 0, &other) == GNN_ESTATE &&
                link->ops->get(link, slot, near, 0, 0, &other) == GNN_ESTATE &&
                link->ops->slot_alloc(link, 64, &slot) == GNN_ESTATE &&
                link->ops->slot_free(link, slot) == GNN_ESTATE;
    link->ops->stats(link, &stats);
    link->ops->ticket_free(link, ticket);
    link->ops->close(link);
    return right ? 0 : 1;
}

static inline void check_child(gnn_link *link, gnn_slot slot, gnn_ticket ticket) {
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        _exit(use_in_child(link, slot, ticket));
    }
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 0);
}

/* The descriptor of this process whose file has no name. */
static inline int spill_descriptor(void) {
    struct stat info;
    for (int fd = 3; fd < 64; fd++) {
        if (!fstat(fd, &info) && S_ISREG(info.st_mode) && info.st_nlink == 0) {
            return fd;
        }
    }
    return -1;
}

#endif
