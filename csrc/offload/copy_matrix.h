/* copy_matrix.h: how fast this machine copies, by kind of host memory, direction and
 * size; what `doctor` prints and chooses the best path from. Measures, so it waits. */
#ifndef GNN_COPY_MATRIX_H
#define GNN_COPY_MATRIX_H

#include "offload/cuda_api.h"

#define GNN_HOST_KIND_MAP(X)                                                           \
    X(GNN_HOST_PINNED, "pinned")     /* page-locked, on the device's CPU node */       \
    X(GNN_HOST_PAGEABLE, "pageable") /* plain; the driver stages it */                 \
    X(GNN_HOST_MANAGED, "managed")   /* advised to stay on the host */                 \
    X(GNN_HOST_SYSTEM, "system")     /* plain, reached by the device itself */

#define GNN_HOST_KIND_ENUM(name, text) name,
typedef enum gnn_host_kind {
    GNN_HOST_KIND_MAP(GNN_HOST_KIND_ENUM) GNN_HOST_KIND_COUNT
} gnn_host_kind;
#undef GNN_HOST_KIND_ENUM

enum { GNN_COPY_OUT, GNN_COPY_IN, GNN_COPY_BOTH, GNN_COPY_WAYS };

/* Rates of one kind in bytes per second; both ways at once: the sum.
 *   sizes   [n], ascending       seconds  spent on each entry, about
 *   rates   [n, GNN_COPY_WAYS]   0 where there was no memory for that size
 * GNN_ENOTSUP: this device cannot do it. */
gnn_status gnn_copy_rates(const gnn_cuda_api *api, int device, gnn_host_kind kind,
                          const int64_t *sizes, int n, double seconds, double *rates);

#endif
