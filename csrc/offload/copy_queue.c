/* copy_queue.c: two lanes of workers over one mutex.
 *
 * A record is one copy. It is held by its ticket, by its lane until the last chunk
 * ended, and by each copy that waits for it; with the last holder it returns to the
 * free list. A ticket is the record's index and generation, so a stale ticket is found
 * out instead of followed.
 */
#include "offload/copy_queue.h"
#include "mutants.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { RECORDS_PER_BLOCK = 64, TEXT_BYTES = 320 };

typedef struct record {
    struct record *next; // in its lane or in the free list
    struct record *after;
    gnn_copy copy;
    int64_t taken;    // bytes handed to workers
    int64_t returned; // bytes workers have finished with
    uint32_t index, generation;
    int holders;
    bool queued;   // in its lane: not yet wholly handed out
    bool followed; // some copy waits for it
    bool done;
    gnn_status status;
    char text[TEXT_BYTES];
} record;

typedef struct lane {
    record *head, *tail;
    pthread_cond_t work;
    int active; // chunks under way
    double since;
    int64_t bytes, copies;
    double busy, stall;
} lane;

typedef struct worker {
    gnn_copy_queue *queue;
    pthread_t thread;
    int index;
    bool out;
} worker;

struct gnn_copy_queue {
    pthread_mutex_t mutex;
    pthread_cond_t ended; // some copy ended
    int waiting;          // threads that wait for `ended`
    lane lanes[2];        // [out]
    bool closing;
    gnn_chunk_fn fn;
    void *context;
    int64_t chunk_bytes;
    int n_workers;
    worker *workers;
    record **blocks; // [n_blocks], RECORDS_PER_BLOCK each
    uint32_t n_blocks;
    record *free;
};

double gnn_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* -------------------------------------------------------------------------- records */

static gnn_status add_block(gnn_copy_queue *queue) {
    size_t blocks_bytes = (queue->n_blocks + 1) * sizeof *queue->blocks;
    record **blocks = realloc(queue->blocks, blocks_bytes);
    if (blocks) {
        queue->blocks = blocks;
    }
    record *block = blocks ? calloc(RECORDS_PER_BLOCK, sizeof *block) : NULL;
    GNN_REQUIRE(block, GNN_ENOMEM, "link: no memory for more tickets");
    for (uint32_t r = 0; r < RECORDS_PER_BLOCK; r++) {
        block[r].index = queue->n_blocks * RECORDS_PER_BLOCK + r;
        block[r].next = queue->free;
        queue->free = &block[r];
    }
    queue->blocks[queue->n_blocks++] = block;
    return GNN_OK;
}

static record *find(gnn_copy_queue *queue, gnn_ticket ticket) {
    uint32_t index = (uint32_t)ticket - 1;
    if ((uint32_t)ticket == 0 || index / RECORDS_PER_BLOCK >= queue->n_blocks) {
        return NULL;
    }
    record *found =
        &queue->blocks[index / RECORDS_PER_BLOCK][index % RECORDS_PER_BLOCK];
    return found->generation == (uint32_t)(ticket >> 32) ? found : NULL;
}

static void let_go(gnn_copy_queue *queue, record *r) {
    if (--r->holders == 0) {
        r->next = queue->free;
        queue->free = r;
    }
}

/* ---------------------------------------------------------------------------- lanes */

static void append(lane *l, record *r) {
    r->next = NULL;
    if (l->tail) {
        l->tail->next = r;
    } else {
        l->head = r;
    }
    l->tail = r;
    r->queued = true;
}

static void unlink_record(lane *l, record *r) {
    record *before = NULL;
    for (record *at = l->head; at != r; at = at->next) {
        before = at;
    }
    if (before) {
        before->next = r->next;
    } else {
        l->head = r->next;
    }
    if (l->tail == r) {
        l->tail = before;
    }
    r->queued = false;
}

/* The oldest copy that may run: what it waits for is done. */
static record *next_ready(lane *l) {
    record *r = l->head;
    while (r && r->after && GNN_MUTANT(get_overtakes_put, !r->after->done, false)) {
        r = r->next;
    }
    return r;
}

static void fail_record(record *r, gnn_status status, const char *text) {
    if (r->status == GNN_OK) {
        r->status = status;
        snprintf(r->text, TEXT_BYTES, "%s", text);
    }
}

/* Called with the record out of its lane and no chunk of it under way. */
static void end_record(gnn_copy_queue *queue, lane *l, record *r) {
    r->done = true;
    if (r->status == GNN_OK && !r->copy.probe) {
        l->bytes += r->copy.slot.bytes;
        l->copies++;
    }
    if (r->after) {
        let_go(queue, r->after);
        r->after = NULL;
    }
    if (queue->waiting) {
        pthread_cond_broadcast(&queue->ended);
    }
    for (int out = 0; r->followed && out < 2; out++) {
        pthread_cond_broadcast(&queue->lanes[out].work);
    }
    let_go(queue, r);
}

static void run_chunk(gnn_copy_queue *queue, lane *l, record *r, int index) {
    int64_t rest = r->copy.slot.bytes - r->taken;
    gnn_chunk chunk = {
        .out = r->copy.out,
        .worker = index,
        .offset = r->copy.slot.offset + r->taken,
        .near = (char *)r->copy.near + r->taken,
        .bytes = rest < queue->chunk_bytes ? rest : queue->chunk_bytes,
    };
    r->taken += chunk.bytes;
    if (r->taken == r->copy.slot.bytes) {
        unlink_record(l, r);
    }
    if (l->active++ == 0) {
        l->since = gnn_seconds();
    }
    pthread_mutex_unlock(&queue->mutex);
    gnn_status status = queue->fn(queue->context, &chunk);
    pthread_mutex_lock(&queue->mutex);
    if (--l->active == 0 && !r->copy.probe) {
        l->busy += gnn_seconds() - l->since;
    }
    r->returned += chunk.bytes;
    if (status != GNN_OK) {
        fail_record(r, status, gnn_message());
        if (r->queued) { // the rest would be wasted work
            unlink_record(l, r);
        }
    }
    if (!r->queued && r->returned == r->taken) {
        end_record(queue, l, r);
    }
}

static void *work(void *argument) {
    worker *self = argument;
    gnn_copy_queue *queue = self->queue;
    lane *l = &queue->lanes[self->out];
    pthread_mutex_lock(&queue->mutex);
    for (;;) {
        record *r = next_ready(l);
        if (r && r->after && r->after->status != GNN_OK) {
            fail_record(r, r->after->status, r->after->text);
            unlink_record(l, r);
            end_record(queue, l, r);
        } else if (r) {
            run_chunk(queue, l, r, self->index);
        } else if (queue->closing && GNN_MUTANT(close_drops_queued, !l->head, true)) {
            break;
        } else {
            pthread_cond_wait(&l->work, &queue->mutex);
        }
    }
    pthread_mutex_unlock(&queue->mutex);
    return NULL;
}

/* ------------------------------------------------------------------- open and close */

static void init_condition(pthread_cond_t *condition) {
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(condition, &attributes);
    pthread_condattr_destroy(&attributes);
}

/* Workers take no signals, so that Ctrl-C reaches the thread that runs Python. */
static int start_workers(gnn_copy_queue *queue, int count) {
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int error = 0;
    for (int w = 0; w < count && !error; w++) {
        worker *self = &queue->workers[w];
        *self = (worker){.queue = queue, .index = w, .out = w % 2 == 0};
        error = pthread_create(&self->thread, NULL, work, self);
        queue->n_workers += !error;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return error;
}

gnn_status gnn_copy_queue_open(gnn_chunk_fn fn, void *context, int threads,
                               int64_t chunk_bytes, gnn_copy_queue **out) {
    gnn_copy_queue *queue = calloc(1, sizeof *queue);
    worker *workers = calloc((size_t)threads * 2, sizeof *workers);
    if (!queue || !workers) {
        free(queue);
        free(workers);
        return gnn_fail(GNN_ENOMEM, "link: no memory for a copy queue");
    }
    queue->workers = workers;
    queue->fn = fn;
    queue->context = context;
    queue->chunk_bytes = chunk_bytes;
    pthread_mutex_init(&queue->mutex, NULL);
    init_condition(&queue->ended);
    init_condition(&queue->lanes[0].work);
    init_condition(&queue->lanes[1].work);
    int error = start_workers(queue, threads * 2);
    if (error) {
        gnn_copy_queue_close(queue);
        return gnn_fail(GNN_ENOMEM, "link: cannot start %d worker threads: %s",
                        threads * 2, strerror(error));
    }
    *out = queue;
    return GNN_OK;
}

void gnn_copy_queue_close(gnn_copy_queue *queue) {
    pthread_mutex_lock(&queue->mutex);
    queue->closing = true;
    pthread_cond_broadcast(&queue->lanes[0].work);
    pthread_cond_broadcast(&queue->lanes[1].work);
    pthread_mutex_unlock(&queue->mutex);
    for (int w = 0; w < queue->n_workers; w++) {
        pthread_join(queue->workers[w].thread, NULL);
    }
    pthread_cond_destroy(&queue->ended);
    pthread_cond_destroy(&queue->lanes[0].work);
    pthread_cond_destroy(&queue->lanes[1].work);
    pthread_mutex_destroy(&queue->mutex);
    for (uint32_t b = 0; b < queue->n_blocks; b++) {
        free(queue->blocks[b]);
    }
    free(queue->blocks);
    free(queue->workers);
    free(queue);
}

/* -------------------------------------------------------------------------- tickets */

static gnn_status start_locked(gnn_copy_queue *queue, const gnn_copy *copy,
                               gnn_ticket *ticket) {
    record *after = copy->after ? find(queue, copy->after) : NULL;
    GNN_REQUIRE(after || !copy->after, GNN_ESTATE, "link: ticket %llu is not alive",
                (unsigned long long)copy->after);
    if (!queue->free) {
        GNN_TRY(add_block(queue));
    }
    record *r = queue->free;
    queue->free = r->next;
    uint32_t index = r->index, generation = r->generation + 1;
    *r =
        (record){.copy = *copy, .index = index, .generation = generation, .holders = 2};
    if (after) {
        r->after = after;
        after->holders++;
        after->followed = true;
    }
    append(&queue->lanes[copy->out], r);
    *ticket = (gnn_ticket)generation << 32 | (index + 1);
    return GNN_OK;
}

static gnn_status check_copy(const gnn_copy *copy) {
    GNN_REQUIRE(copy->slot.bytes > 0 && copy->near, GNN_EINVAL,
                "link: a copy needs a pointer and at least 1 byte, got %lld",
                (long long)copy->slot.bytes);
    return GNN_OK;
}

gnn_status gnn_copy_start(gnn_copy_queue *queue, const gnn_copy *copy,
                          gnn_ticket *ticket) {
    GNN_TRY(check_copy(copy));
    lane *l = &queue->lanes[copy->out];
    pthread_mutex_lock(&queue->mutex);
    gnn_status status = start_locked(queue, copy, ticket);
    pthread_mutex_unlock(&queue->mutex);
    // Woken without the mutex, which the worker needs at once. A worker that was awake
    // looks at its lane before it sleeps.
    if (status == GNN_OK && copy->slot.bytes > queue->chunk_bytes) {
        pthread_cond_broadcast(&l->work);
    } else if (status == GNN_OK) {
        pthread_cond_signal(&l->work);
    }
    return status;
}

gnn_status gnn_copy_now(gnn_copy_queue *queue, const gnn_copy *copy) {
    GNN_TRY(check_copy(copy));
    gnn_chunk chunk = {
        .out = copy->out,
        .worker = -1,
        .offset = copy->slot.offset,
        .near = copy->near,
        .bytes = copy->slot.bytes,
    };
    double begin = gnn_seconds();
    GNN_TRY(queue->fn(queue->context, &chunk));
    double seconds = gnn_seconds() - begin;
    lane *l = &queue->lanes[copy->out];
    pthread_mutex_lock(&queue->mutex);
    l->bytes += copy->slot.bytes;
    l->copies++;
    l->stall += seconds; // the host did nothing else
    if (l->active == 0) {
        l->busy += seconds;
    }
    pthread_mutex_unlock(&queue->mutex);
    return GNN_OK;
}

static void sleep_until_done(gnn_copy_queue *queue, record *r, double seconds) {
    double begin = gnn_seconds(), end = begin + (seconds < 1e9 ? seconds : 1e9);
    struct timespec deadline = {.tv_sec = (time_t)end};
    deadline.tv_nsec = (long)(1e9 * (end - (double)deadline.tv_sec));
    int error = 0;
    queue->waiting++;
    while (!r->done && error != ETIMEDOUT) {
        error = seconds < 0
                    ? pthread_cond_wait(&queue->ended, &queue->mutex)
                    : pthread_cond_timedwait(&queue->ended, &queue->mutex, &deadline);
    }
    queue->waiting--;
    if (!r->copy.probe) {
        queue->lanes[r->copy.out].stall += gnn_seconds() - begin;
    }
}

gnn_status gnn_copy_wait(gnn_copy_queue *queue, gnn_ticket ticket, double seconds,
                         bool *done) {
    *done = true;
    if (ticket == 0) {
        return GNN_OK;
    }
    pthread_mutex_lock(&queue->mutex);
    record *r = find(queue, ticket);
    gnn_status status = GNN_OK;
    if (!r) {
        status = gnn_fail(GNN_ESTATE, "link: ticket %llu is not alive",
                          (unsigned long long)ticket);
    } else {
        r->holders++; // another thread may forget the ticket meanwhile
        if (!r->done && seconds != 0) {
            sleep_until_done(queue, r, seconds);
        }
        *done = r->done;
        if (r->done && r->status != GNN_OK) {
            status = gnn_fail(r->status, "%s", r->text);
        }
        let_go(queue, r);
    }
    pthread_mutex_unlock(&queue->mutex);
    return status;
}

void gnn_copy_forget(gnn_copy_queue *queue, gnn_ticket ticket) {
    if (ticket == 0) {
        return;
    }
    pthread_mutex_lock(&queue->mutex);
    record *r = find(queue, ticket);
    if (r) {
        r->generation++; // the ticket is dead even while its copy lives
        let_go(queue, r);
    }
    pthread_mutex_unlock(&queue->mutex);
}

void gnn_copy_stats(gnn_copy_queue *queue, gnn_link_stats *stats) {
    pthread_mutex_lock(&queue->mutex);
    const lane *in = &queue->lanes[0], *out = &queue->lanes[1];
    double now = gnn_seconds();
    stats->bytes_out = out->bytes;
    stats->bytes_in = in->bytes;
    stats->copies_out = out->copies;
    stats->copies_in = in->copies;
    stats->busy_out = out->busy + (out->active ? now - out->since : 0);
    stats->busy_in = in->busy + (in->active ? now - in->since : 0);
    stats->stall_out = out->stall;
    stats->stall_in = in->stall;
    pthread_mutex_unlock(&queue->mutex);
}
