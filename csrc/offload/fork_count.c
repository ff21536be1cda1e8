/* fork_count.c: one handler, installed at the first question. */
#include "offload/fork_count.h"

#include <pthread.h>
#include <stddef.h>

static unsigned forks;
static pthread_once_t counting = PTHREAD_ONCE_INIT;

static void count_fork(void) {
    forks++;
}

static void start_counting(void) {
    pthread_atfork(NULL, NULL, count_fork);
}

unsigned gnn_fork_count(void) {
    pthread_once(&counting, start_counting);
    return forks;
}
