/* csr_sizes.h: what every builder of a CSR demands of its sizes. */
#ifndef GNN_CSR_SIZES_H
#define GNN_CSR_SIZES_H

#include "gnn.h"

/* Rows and columns below 2^31 (both directions hold int32 indices), edges such that no
 * byte count of ours overflows. */
gnn_status gnn_csr_check_sizes(int64_t n_rows, int64_t n_cols, int64_t n_edges);

#endif
