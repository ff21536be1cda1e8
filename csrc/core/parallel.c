/* parallel.c: the one door to threads. Serial until someone sets a better loop; the
 * Python module sets torch's, the C tests set pthreads. */
#include "gnn.h"

static void serial_for(int64_t n, int64_t grain, gnn_range_body body, void *context) {
    (void)grain;
    body(0, n, context);
}

static gnn_parallel_for_fn parallel_for = serial_for;

void gnn_set_parallel_for(gnn_parallel_for_fn fn) {
    parallel_for = fn != NULL ? fn : serial_for;
}

void gnn_parallel_for(int64_t n, int64_t grain, gnn_range_body body, void *context) {
    if (n > 0) {
        parallel_for(n, grain > 0 ? grain : 1, body, context);
    }
}
