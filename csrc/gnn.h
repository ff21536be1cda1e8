/* gnn.h: the C interface of gnnoffload's core and kernels.
 *
 * Every function returns a gnn_status; the text of the last failure on this thread is
 * gnn_message(). Ops allocate nothing: outputs and scratch belong to the caller. Row
 * pointers are int64, column indices int32, all address arithmetic int64. 16- and 32-bit
 * features accumulate in float, double in double.
 * Words: N rows (destinations), M columns (sources), E entries (edges), F features.
 */
#ifndef GNN_H
#define GNN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---------------------------------------------------------------- status and message */

/* name, text, Python exception raised for it */
#define GNN_STATUS_MAP(X)                                                              \
    X(GNN_OK, "ok", NULL)                                                              \
    X(GNN_EINVAL, "invalid argument", "ValueError")                                    \
    X(GNN_EGRAPH, "malformed graph", "GraphError")                                     \
    X(GNN_ETYPE, "wrong type", "TypeError")                                            \
    X(GNN_ENOTSUP, "not supported", "NotImplementedError")                             \
    X(GNN_ENOMEM, "out of memory", "MemoryError")                                      \
    X(GNN_EFULL, "tier is full", "OffloadError")                                       \
    X(GNN_EIO, "input/output failed", "SpillError")                                    \
    X(GNN_ESTATE, "wrong state", "OffloadError")                                       \
    X(GNN_EDEVICE, "device failed", "DeviceError")

#define GNN_STATUS_ENUM(name, text, exception) name,
typedef enum gnn_status { GNN_STATUS_MAP(GNN_STATUS_ENUM) GNN_STATUS_COUNT } gnn_status;
#undef GNN_STATUS_ENUM

/* Records a message for this thread and returns status, so that an error path is
 * `return gnn_fail(GNN_EINVAL, "spmm: x must have %lld rows, got %lld", ...)`. */
gnn_status gnn_fail(gnn_status status, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
const char *gnn_message(void);    // last failure on this thread, never NULL
gnn_status gnn_last_status(void); // its status
const char *gnn_status_text(gnn_status status);      // "malformed graph"
const char *gnn_status_exception(gnn_status status); // "GraphError", NULL for GNN_OK

#define GNN_REQUIRE(condition, status, ...)                                            \
    do {                                                                               \
        if (!(condition)) {                                                            \
            return gnn_fail((status), __VA_ARGS__);                                    \
        }                                                                              \
    } while (0)

#define GNN_TRY(call)                                                                  \
    do {                                                                               \
        gnn_status gnn_try_status_ = (call);                                           \
        if (gnn_try_status_ != GNN_OK) {                                               \
            return gnn_try_status_;                                                    \
        }                                                                              \
    } while (0)

/* How this library was built. Static texts; cuda is "" without CUDA, else "13.0". */
typedef struct gnn_build {
    const char *compiler, *flags, *cuda;
} gnn_build;
gnn_build gnn_build_facts(void);

/* --------------------------------------------------------------------------- dtypes */

/* name, bytes, text */
#define GNN_DTYPE_MAP(X)                                                               \
    X(GNN_F32, 4, "float32")                                                           \
    X(GNN_F64, 8, "float64")                                                           \
    X(GNN_BF16, 2, "bfloat16")                                                         \
    X(GNN_F16, 2, "float16")                                                           \
    X(GNN_I32, 4, "int32")                                                             \
    X(GNN_I64, 8, "int64")                                                             \
    X(GNN_I8, 1, "int8")                                                               \
    X(GNN_I16, 2, "int16")

#define GNN_DTYPE_ENUM(name, bytes, text) name,
typedef enum gnn_dtype { GNN_DTYPE_MAP(GNN_DTYPE_ENUM) GNN_DTYPE_COUNT } gnn_dtype;
#undef GNN_DTYPE_ENUM

int64_t gnn_dtype_size(gnn_dtype dtype);     // bytes of one element
const char *gnn_dtype_text(gnn_dtype dtype); // "float32"

/* ------------------------------------------------------------------------- threads */

/* Runs body(begin, end, context) over disjoint ranges that cover [0, n), each at least
 * `grain` long except the last. Which thread runs which range is unspecified, so a
 * result must depend on the item index alone. Set once, at bind; serial by default. */
typedef void (*gnn_range_body)(int64_t begin, int64_t end, void *context);
typedef void (*gnn_parallel_for_fn)(int64_t n, int64_t grain, gnn_range_body body,
                                    void *context);
void gnn_set_parallel_for(gnn_parallel_for_fn fn); // NULL restores the serial one
void gnn_parallel_for(int64_t n, int64_t grain, gnn_range_body body, void *context);

/* --------------------------------------------------------------------------- graphs */

/* A view of a compressed sparse matrix. By destination (CSR): rows are destinations and
 * col holds sources. By source (CSC), the same struct with the roles swapped. */
typedef struct gnn_csr {
    int64_t n_rows, n_cols, n_edges;
    const int64_t *rowptr; // [n_rows + 1]
    const int32_t *col;    // [n_edges]
    const void *eid; // [n_edges] entry -> edge in the caller's order; NULL: identity
    gnn_dtype eid_dtype; // GNN_I32 or GNN_I64
    // CUDA only: [n_split, 2] row and chunk number of every chunk of GNN_CUDA_CHUNK
    // entries of the rows that have more, in order. n_split 0: such rows stay whole.
    const int64_t *split;
    int64_t n_split;
} gnn_csr;

enum { GNN_CUDA_CHUNK = 256 };

/* Checks a CSR given by a caller, before anything else sees it.
 *   rowptr [n_rowptr], col [n_edges], of dtype GNN_I32 or GNN_I64 each
 * Returns GNN_EGRAPH naming the argument, first bad position, value and limit: rowptr must
 * have n_rows + 1 entries, start at 0, never decrease and end at n_edges; every col must
 * lie in [0, n_cols); n_cols must be below 2^31. Reads everything once. */
gnn_status gnn_csr_check(const void *rowptr, gnn_dtype rowptr_dtype, int64_t n_rowptr,
                         const void *col, gnn_dtype col_dtype, int64_t n_edges,
                         int64_t n_rows, int64_t n_cols);

/* Builds the CSR of an edge list, rows ordered by (row, col), ties by input position.
 *   row, col   [n_edges] of dtype GNN_I32 or GNN_I64, `row_stride`/`col_stride` elements
 *              apart; each entry is checked while it is read (GNN_EGRAPH with edge number,
 *              value and limit)
 *   scratch    gnn_csr_from_coo_scratch() bytes, 64-byte aligned
 *   rowptr     [n_rows + 1]      out_col [n_edges]
 *   eid        [n_edges] of eid_dtype (GNN_I32 needs n_edges < 2^31)
 *   *sorted    true when the input already was in that order: eid is the identity
 * A stable radix sort, skipped when the input is sorted. */
int64_t gnn_csr_from_coo_scratch(int64_t n_edges, int64_t n_rows, int64_t n_cols);
gnn_status gnn_csr_from_coo(const void *row, int64_t row_stride, const void *col,
                            int64_t col_stride, gnn_dtype index_dtype, int64_t n_edges,
                            int64_t n_rows, int64_t n_cols, void *scratch,
                            int64_t *rowptr, int32_t *out_col, void *eid,
                            gnn_dtype eid_dtype, bool *sorted);

/* Transposes a checked CSR: rows of the result are columns of a, each row ordered by
 * (row of a, position).
 *   colptr [n_cols + 1]   row [n_edges]   eid [n_edges] of eid_dtype: entry -> edge in the
 *   caller's order (a->eid composed with the transposition) */
gnn_status gnn_csr_transpose(const gnn_csr *a, int64_t *colptr, int32_t *row, void *eid,
                             gnn_dtype eid_dtype);

/* --------------------------------------------------------------- sparse-dense product */

/* y[i, :] = s[i] * sum over entries e of row i of  w[eid[e]] * t[col[e]] * x[col[e], :]
 *   x       [n_cols, F] of dtype, rows x_stride elements apart (0 and negative allowed)
 *   weight  [n_edges] of dtype, in the caller's edge order; NULL: all ones
 *   row_scale s [n_rows], col_scale t [n_cols] of the accumulator type; NULL: all ones
 *   scratch gnn_spmm_scratch(&a, F, dtype) bytes, 64-byte aligned (partial sums of rows
 *           that are split between work items)
 *   y       [n_rows, F] of dtype, contiguous, overwritten, must not overlap x
 * Sums in entry order within a work item and in item order across items; items depend on
 * the graph alone, so the result does not depend on the thread count. */
typedef struct gnn_spmm_args {
    gnn_csr a;
    gnn_dtype dtype; // GNN_F32, GNN_F64, GNN_BF16, GNN_F16
    int64_t n_features, x_stride;
    const void *x, *weight, *row_scale, *col_scale;
    void *scratch, *y;
} gnn_spmm_args;
int64_t gnn_spmm_scratch(const gnn_csr *a, int64_t n_features, gnn_dtype dtype);
gnn_status gnn_spmm_cpu(const gnn_spmm_args *args);

/* The same on a CUDA device: every pointer but args is device memory, `stream` is a
 * cudaStream_t of the current device. Queues the work and does not wait. A row's bits
 * depend on that row alone, not on the device or on whether rows are split.
 * GNN_EDEVICE when the launch fails, GNN_ENOTSUP when built without CUDA. */
int64_t gnn_spmm_cuda_scratch(const gnn_csr *a, int64_t n_features, gnn_dtype dtype);
gnn_status gnn_spmm_cuda(const gnn_spmm_args *args, uint64_t stream);

/* z[eid[e]] = s[i] * t[col[e]] * <u[i, :], v[col[e], :]>   for every entry e of row i
 *   u [n_rows, F], v [n_cols, F] of dtype, rows u_stride and v_stride elements apart
 *   row_scale, col_scale as in gnn_spmm_args          z [n_edges] of dtype, overwritten */
typedef struct gnn_sddmm_args {
    gnn_csr a;
    gnn_dtype dtype;
    int64_t n_features, u_stride, v_stride;
    const void *u, *v, *row_scale, *col_scale;
    void *z;
} gnn_sddmm_args;
gnn_status gnn_sddmm_cpu(const gnn_sddmm_args *args);
gnn_status gnn_sddmm_cuda(const gnn_sddmm_args *args, uint64_t stream); // as spmm

/* y[i, :] = sum over entries e of row i of  relu(x[col[e], :] + edge[eid[e], :])
 *   x       [n_cols, F], edge [n_edges, F] in the caller's edge order, both of dtype, rows
 *           x_stride and edge_stride elements apart (0 and negative allowed)
 *   dx, dedge   as x and edge; where one is given, y is the derivative along them instead:
 *           the sum of  dx[col[e], :] + dedge[eid[e], :]  where the message is above 0
 *           (or NaN); NULL: zeros
 *   scratch gnn_gine_scratch(&a, F, dtype) bytes, 64-byte aligned
 *   y       [n_rows, F] of dtype, contiguous, overwritten, must not overlap an input
 * Order of summation as gnn_spmm_cpu. Nothing of size E x F besides the arguments. */
typedef struct gnn_gine_args {
    gnn_csr a;
    gnn_dtype dtype;
    int64_t n_features, x_stride, edge_stride, dx_stride, dedge_stride;
    const void *x, *edge, *dx, *dedge;
    void *scratch, *y;
} gnn_gine_args;
int64_t gnn_gine_scratch(const gnn_csr *a, int64_t n_features, gnn_dtype dtype);
gnn_status gnn_gine_cpu(const gnn_gine_args *args);

/* Its gradients, given that of y. Rows of a are sources here: the transpose of forward's.
 *   grad_edge[eid[e], :] = grad[col[e], :] where x[i, :] + edge[eid[e], :] is above 0 (or
 *   NaN), else 0, and grad_x[i, :] their sum over the entries e of row i
 *   x       [n_rows, F], edge [n_edges, F], grad [n_cols, F] of dtype, strides in elements
 *   scratch gnn_gine_scratch(&a, F, dtype) bytes, 64-byte aligned
 *   grad_x [n_rows, F], grad_edge [n_edges, F] contiguous, overwritten; NULL: not wanted */
typedef struct gnn_gine_vjp_args {
    gnn_csr a;
    gnn_dtype dtype;
    int64_t n_features, x_stride, edge_stride, grad_stride;
    const void *x, *edge, *grad;
    void *scratch, *grad_x, *grad_edge;
} gnn_gine_vjp_args;
gnn_status gnn_gine_vjp_cpu(const gnn_gine_vjp_args *args);

/* The same on a CUDA device, as gnn_spmm_cuda; scratch is gnn_spmm_cuda_scratch. */
gnn_status gnn_gine_cuda(const gnn_gine_args *args, uint64_t stream);
gnn_status gnn_gine_vjp_cuda(const gnn_gine_vjp_args *args, uint64_t stream);

/* Gated sums, and the derivative by u that comes out of the same pass:
 *   y[i, :] = s[i] * sum over entries e of row i of  sigmoid(gate[e]) * value[e]
 *   gate[e] = u[i, :F] + v[j, :F] + edge[eid[e], :F]        j = col[e]
 *   value[e] the same of columns [F, 2 F), or softplus of that (above 20 the argument)
 *   dy_du[i, :] = s[i] * sum of the terms' derivatives by u[i, :]; grad * dy_du is u's
 *           gradient, column by column
 * Given grad, the gradient of y; rows of a are sources j then, the transpose of forward's:
 *   d_v[j, :] = sum over the entries of row j of d_edge[eid[e], :], and d_edge[eid[e], :]
 *           the derivative of  s[i] * <grad[i, :], term of e>  by what gate and value add
 *   u       [n_dst, F], or [n_dst, 2 F] with u_has_value; without, values have no part of it
 *   v, edge [n_src, 2 F], [n_edges, 2 F] in the caller's edge order; edge NULL: zeros
 *   scale   A [n_dst] s, of the accumulator's type; NULL: all ones
 * Matrices of dtype, rows `<name>_stride` elements apart (0 and negative allowed). Outputs
 * contiguous, overwritten, apart from the inputs. Order of summation as gnn_spmm_cpu.
 * Nothing of size E x F besides edge and d_edge. */
typedef struct gnn_gated_args {
    gnn_csr a;
    gnn_dtype dtype;
    bool softplus, u_has_value;
    int64_t n_features, u_stride, v_stride, edge_stride, grad_stride;
    const void *u, *v, *edge, *scale;
    void *y;            // forward: [n_dst, F] of dtype
    void *dy_du;        // forward: A, as wide as u; NULL: not wanted
    const void *grad;   // vjp: [n_dst, F] of dtype
    void *d_v, *d_edge; // vjp: [n_src, 2 F], [n_edges, 2 F] of dtype; NULL: not wanted
    void *scratch;      // gnn_gated_scratch bytes, 64-byte aligned
} gnn_gated_args;
int64_t gnn_gated_scratch(const gnn_gated_args *args); // of args' graph, F and dtype
gnn_status gnn_gated_cpu(const gnn_gated_args *args);
gnn_status gnn_gated_vjp_cpu(const gnn_gated_args *args);
int64_t gnn_gated_cuda_scratch(const gnn_gated_args *args);
gnn_status gnn_gated_cuda(const gnn_gated_args *args, uint64_t stream);
gnn_status gnn_gated_vjp_cuda(const gnn_gated_args *args, uint64_t stream);

/* ------------------------------------------------------------------------- attention */

/* Attention over the entries e = (j -> i) of each row i, for each head h:
 *   alpha[e, h] = exp(s[e, h] - lse[i, h]),    lse[i, h] = log sum of exp(s) over row i
 *   out[i, h, :] = sum over e of  m[e, h] * alpha[e, h] * value[e, h, :]
 * m is the dropout factor: 0 with probability `dropout`, else 1 / (1 - dropout), a
 * function of (seed, eid[e], h) alone (gnn_dropout_keeps). An empty row has out 0 and
 * lse -inf. Scores s and values by kind, with f[e, h, :] a projected edge feature:
 *   GNN_GAT    s = lrelu(score_src[j, h] + score_dst[i, h] + score_edge[eid, h])
 *              value = v[j, h]
 *   GNN_GATV2  s = <att[h], lrelu(v[j, h] + q[i, h] + f[e, h])>       value = v[j, h]
 *              f = edge[eid, h], or in the kernel edge_weight^T edge_attr[eid] (D <= 16)
 *   GNN_DOT    s = scale * <q[i, h], k[j, h] + f[e, h]>               value = v[j, h] + f
 *              f = edge[eid, h]; or with raw attributes, never projected per edge:
 *              s = scale * (<q[i, h], k[j, h]> + <q_edge[i, h], edge_attr[eid]>),
 *              value = v[j, h], out_edge[i, h, :] = sum of m * alpha * edge_attr[eid]
 * Scores, alpha, lse and every sum in the accumulator type A (double for double, else
 * float). A score of NaN makes its row and head NaN. +inf scores: lse inf and alpha NaN.
 *
 * One struct for the three passes. Matrices are of dtype, [rows, H * C] unless said, rows
 * `<name>_stride` elements apart; NULL: absent. [E, ...] in the caller's edge order.
 * Heavy rows are cut (GNN_WORK entries, GNN_CUDA_CHUNK on CUDA) and combined in order. */
typedef enum gnn_attention_kind { GNN_GAT, GNN_GATV2, GNN_DOT } gnn_attention_kind;

typedef struct gnn_attention_args {
    gnn_csr a; // forward's graph; its transpose in gnn_attention_src_vjp_*
    gnn_attention_kind kind;
    gnn_dtype dtype;
    int64_t n_heads, n_channels, n_edge_features; // H, C, D
    double slope, scale, dropout; // of lrelu; of DOT's scores; p in [0, 1)
    uint64_t seed;

    // operands; sources and destinations are those of forward's graph in every pass
    const void *v, *k;                 // [n_src, H * C]; k: DOT
    const void *q;                     // [n_dst, H * C]; GATV2, DOT
    const void *score_src, *score_dst; // GAT: A [n_src, H], A [n_dst, H], contiguous
    const void *score_edge;            // GAT: A [E, H], contiguous, or NULL
    const void *att;                   // GATV2: [H * C]
    const void *edge;                  // GATV2, DOT: [E, H * C], or NULL
    const void *edge_attr;             // GATV2, DOT: [E, D], or NULL
    const void *edge_weight;           // GATV2 with edge_attr: [D, H * C], contiguous
    const void *q_edge;                // DOT with edge_attr: [n_dst, H * D], contiguous
    int64_t v_stride, k_stride, q_stride, edge_stride, edge_attr_stride;

    // forward writes these, backward reads them
    void *out;      // [n_dst, H * C] of dtype, contiguous; backward ignores it
    void *out_edge; // A [n_dst, H * D]; DOT with edge_attr
    void *out_acc;  // A [n_dst, H * C]: out before rounding; forward: NULL: not wanted
    void *lse;      // A [n_dst, H]

    // backward
    const void *grad; // [n_dst, H * C] of dtype, rows grad_stride apart
    const void
        *grad_edge; // A [n_dst, H * D], contiguous: gradient of out_edge, or NULL
    int64_t grad_stride;
    void *alpha,
        *dscore; // A [E, H]: m * alpha, and the gradient of the scores (GAT: of
                 // the sum inside lrelu); dst pass writes, src pass reads

    // gradients, contiguous; of dtype, or A where the operand is; NULL: not wanted
    void *d_q, *d_score_dst, *d_att, *d_edge, *d_edge_attr, *d_edge_weight; // dst pass
    void *d_q_edge;
    void *d_v, *d_k, *d_score_src; // src pass
    void *scratch;                 // gnn_attention_*scratch bytes, 64-byte aligned
} gnn_attention_args;

enum { GNN_MAX_EDGE_FEATURES = 16 }; // D, of GATV2 with edge_attr

/* dst pass: from v.. and out_acc, lse, grad: alpha, dscore (both always), and what hangs
 * on destinations, edges and parameters; delta = <grad, out> replaces a pass over the
 * edges. src pass: from alpha, dscore and the rows of destinations: what hangs on sources.
 * Each writes every row of what it is asked for, and no atomics are used. */
int64_t gnn_attention_scratch(const gnn_attention_args *args); // forward
int64_t
gnn_attention_dst_vjp_scratch(const gnn_attention_args *args); // from args' shapes
int64_t
gnn_attention_src_vjp_scratch(const gnn_attention_args *args); // and d_* pointers
gnn_status gnn_attention_cpu(const gnn_attention_args *args);
gnn_status gnn_attention_dst_vjp_cpu(const gnn_attention_args *args);
gnn_status gnn_attention_src_vjp_cpu(const gnn_attention_args *args);

/* The same on a CUDA device, as gnn_spmm_cuda. */
int64_t gnn_attention_cuda_scratch(const gnn_attention_args *args);
int64_t gnn_attention_dst_vjp_cuda_scratch(const gnn_attention_args *args);
int64_t gnn_attention_src_vjp_cuda_scratch(const gnn_attention_args *args);
gnn_status gnn_attention_cuda(const gnn_attention_args *args, uint64_t stream);
gnn_status gnn_attention_dst_vjp_cuda(const gnn_attention_args *args, uint64_t stream);
gnn_status gnn_attention_src_vjp_cuda(const gnn_attention_args *args, uint64_t stream);

/* Softmax over the entries of each row: alpha[eid, h] = exp(s[eid, h] - lse[row, h]), and
 * its gradient ds = alpha * (dalpha - sum over the row of alpha * dalpha). s, alpha,
 * dalpha, ds [E, H] of dtype in the caller's edge order, contiguous. */
typedef struct gnn_edge_softmax_args {
    gnn_csr a;
    gnn_dtype dtype;
    int64_t n_heads;
    const void *scores; // forward: s; backward: NULL
    void *alpha;        // forward writes, backward reads
    const void *grad;   // backward: dalpha
    void *d_scores;     // backward: ds
    void *scratch;
} gnn_edge_softmax_args;
int64_t gnn_edge_softmax_scratch(const gnn_edge_softmax_args *args);
gnn_status gnn_edge_softmax_cpu(const gnn_edge_softmax_args *args);
gnn_status gnn_edge_softmax_vjp_cpu(const gnn_edge_softmax_args *args);
int64_t gnn_edge_softmax_cuda_scratch(const gnn_edge_softmax_args *args);
gnn_status gnn_edge_softmax_cuda(const gnn_edge_softmax_args *args, uint64_t stream);
gnn_status gnn_edge_softmax_vjp_cuda(const gnn_edge_softmax_args *args,
                                     uint64_t stream);

/* spmm and sddmm head by head:
 *   heads_spmm   y[i, h, :] = scale * sum over entries of  w[eid, h] * x[col, h, :]
 *   heads_sddmm  z[eid, h] = scale * <u[i, h, :], v[col, h, :]>
 *   x [n_cols, H * C], u [n_rows, H * C], v [n_cols, H * C] of dtype, strides in elements
 *   w, z [E, H] of edge_dtype (dtype or A), in the caller's edge order, contiguous */
typedef struct gnn_heads_args {
    gnn_csr a;
    gnn_dtype dtype, edge_dtype;
    int64_t n_heads, n_channels, x_stride, u_stride, v_stride;
    double scale;
    const void *x, *w; // spmm
    void *y;           // spmm: [n_rows, H * C] contiguous
    const void *u, *v; // sddmm
    void *z;
    void *scratch; // spmm
} gnn_heads_args;
int64_t gnn_heads_spmm_scratch(const gnn_heads_args *args);
gnn_status gnn_heads_spmm_cpu(const gnn_heads_args *args);
gnn_status gnn_heads_sddmm_cpu(const gnn_heads_args *args);
int64_t gnn_heads_spmm_cuda_scratch(const gnn_heads_args *args);
gnn_status gnn_heads_spmm_cuda(const gnn_heads_args *args, uint64_t stream);
gnn_status gnn_heads_sddmm_cuda(const gnn_heads_args *args, uint64_t stream);

/* Whether attention keeps edge `edge` (caller's number) of head `head` at a dropout
 * probability: a counter-based generator (Philox 4x32-10 of Salmon et al., SC 2011, key
 * seed, counter (edge, head / 4), word head % 4), the same on every device and in any
 * order. Kernels call core/philox.h, where one call serves four heads. */
bool gnn_dropout_keeps(uint64_t seed, int64_t edge, int64_t head, double dropout);

/* ------------------------------------------------------------------------ reductions */

/* Any subset of six statistics of the messages m[e] = x[col[e], :] + edge[eid[e], :]
 * (edge NULL: x alone) over the n entries of row i, from one gather; all 0 where n is 0:
 *   SUM  sum of m      MEAN  sum of m / n      MIN, MAX  the least and greatest m
 *   VAR  mean of m^2 - mean^2, accumulated around the row's first message c (around 0
 *        where c is not finite): with d = m - c, sum = n c + sum d and
 *        var = sum d^2 / n - (sum d / n)^2, so that a mean far from 0 costs no digits
 *   STD  sqrt(max(var, 1e-5)), and 0 where that is at most sqrt(1e-5)
 * NaN is both less and greater than any number: it wins MIN and MAX. 0 equals -0, the
 * first one is kept. With an edge, 16-bit messages are rounded to dtype first.
 *
 * Where MIN or MAX is attained, arg says: the entry's number within its row (0, 1, ..)
 * where one entry attains it, -k where k >= 2 entries do, -1 in an empty row.
 *
 * Gradients. The transpose is walked by source j; every entry e = (j -> i) adds
 *   a[i] + b[i] * m[e]    a = g_sum + (g_mean - 2 mean v) / n,  b = 2 v / n,
 *                         v = g_var + (std > 0 ? g_std / (2 std) : 0)
 *   + g_max[i]            where arg_max[i] is e's number in row i
 *   + g_max[i] / k        where arg_max[i] is -k and m[e] equals y_max[i] (NaN: NaN)
 *   and the same for MIN
 * to d_x[j], in the transpose's entry order, and the same is d_edge[eid[e]]. a and b are
 * made first, one loop over the rows of `a`, in scratch; so is e's number in its row,
 * for every edge in the caller's order, in arg_dtype (CSC entries find it by `back`'s
 * eid). x and edge are read where MIN, MAX, VAR or STD is in `which`. */
#define GNN_REDUCE_MAP(X)                                                              \
    X(GNN_SUM, "sum")                                                                  \
    X(GNN_MEAN, "mean")                                                                \
    X(GNN_MIN, "min")                                                                  \
    X(GNN_MAX, "max")                                                                  \
    X(GNN_VAR, "var")                                                                  \
    X(GNN_STD, "std")
#define GNN_REDUCE_ENUM(name, text) name,
typedef enum gnn_reduce { GNN_REDUCE_MAP(GNN_REDUCE_ENUM) GNN_REDUCE_COUNT } gnn_reduce;
#undef GNN_REDUCE_ENUM

typedef struct gnn_aggregate_args {
    gnn_csr a;           // rows are destinations
    gnn_csr back;        // its transpose; vjp
    gnn_dtype dtype;     // of x, edge, y, grad, d_x, d_edge
    gnn_dtype arg_dtype; // GNN_I8, GNN_I16, GNN_I32: rows of at most 2^7, 2^15, 2^31
    unsigned which;      // sum of 1 << gnn_reduce
    int64_t n_features, x_stride, edge_stride; // strides in elements
    const void *x;                             // [n_src, F]
    const void *edge;                          // [n_edges, F], or NULL

    // [n_dst, F] each, contiguous: forward writes them, vjp reads them
    void *y[GNN_REDUCE_COUNT]; // of those in which; vjp reads MIN, MAX (ties) and STD
    void *arg_min, *arg_max;   // of arg_dtype; forward: NULL: not wanted
    void *mean;                // A; forward: NULL: not wanted; vjp: with VAR or STD

    const void *grad[GNN_REDUCE_COUNT]; // vjp: [n_dst, F] of those in which, or NULL: 0
    int64_t grad_stride[GNN_REDUCE_COUNT];
    void *d_x, *d_edge; // [n_src, F], [n_edges, F] contiguous; NULL: not wanted
    void *scratch;      // 64-byte aligned
} gnn_aggregate_args;
gnn_dtype gnn_arg_dtype(int64_t max_degree); // the smallest that will do
/* Bytes of scratch, from everything in args that is no pointer and whether edge is NULL */
int64_t gnn_aggregate_scratch(const gnn_aggregate_args *args);
int64_t gnn_aggregate_vjp_scratch(const gnn_aggregate_args *args);
gnn_status gnn_aggregate_cpu(const gnn_aggregate_args *args);
gnn_status gnn_aggregate_vjp_cpu(const gnn_aggregate_args *args);
int64_t gnn_aggregate_cuda_scratch(const gnn_aggregate_args *args);
int64_t gnn_aggregate_vjp_cuda_scratch(const gnn_aggregate_args *args);
gnn_status gnn_aggregate_cuda(const gnn_aggregate_args *args, uint64_t stream);
gnn_status gnn_aggregate_vjp_cuda(const gnn_aggregate_args *args, uint64_t stream);

/* Softmax aggregation, feature by feature, with inverse temperatures t[f]:
 *   y[i] = sum over entries e of row i of  p[e] * m[e],   p[e] = exp(t * m[e] - lse[i])
 *   lse[i] = log sum of exp(t * m[e]) over the row; an empty row has y 0 and lse -inf
 *   m[e] = x[col[e], :] + edge[eid[e], :] (edge NULL: x alone), or relu of that plus eps
 * Given g, the gradient of y, with z = t * m:
 *   d_m[e] = g[i] * p[e] * (1 + t * (m[e] - y[i])), or g[i] * p[e] under semi_grad
 *   d_x[j] = sum of d_m over the entries of source j, d_edge[eid[e]] = d_m[e], each gated
 *   by relu (passing where x + edge is above 0 or NaN)
 *   d_t[f] = sum over all entries of g[i] * p[e] * m[e] * (m[e] - y[i])
 * Everything in the accumulator type A; p is made again from lse. An infinite t * m
 * makes its row and feature NaN, -inf alone only where m is infinite too. */
typedef struct gnn_softmax_aggregate_args {
    gnn_csr a; // rows are destinations; vjp: the transpose, rows are sources
    gnn_dtype dtype;
    bool relu, semi_grad;
    double eps; // with relu
    int64_t n_features, x_stride, edge_stride, grad_stride;
    const void *x;    // [n_src, F]
    const void *edge; // [n_edges, F], or NULL
    const void *t;    // A [F]

    // [n_dst, F], contiguous: forward writes them
    void *y;       // of dtype; vjp does not read it
    void *out_acc; // A: y before rounding; forward: NULL: not wanted; vjp reads it
    void *lse;     // A; forward: NULL: not wanted; vjp reads it

    const void *grad;   // vjp: [n_dst, F] of dtype
    void *d_x, *d_edge; // [n_src, F], [n_edges, F] contiguous; NULL: not wanted
    void *d_t;          // A [F]; NULL: not wanted; not with semi_grad
    void *scratch;      // 64-byte aligned
} gnn_softmax_aggregate_args;
int64_t gnn_softmax_aggregate_scratch(const gnn_softmax_aggregate_args *args);
int64_t gnn_softmax_aggregate_vjp_scratch(const gnn_softmax_aggregate_args *args);
gnn_status gnn_softmax_aggregate_cpu(const gnn_softmax_aggregate_args *args);
gnn_status gnn_softmax_aggregate_vjp_cpu(const gnn_softmax_aggregate_args *args);
int64_t gnn_softmax_aggregate_cuda_scratch(const gnn_softmax_aggregate_args *args);
int64_t gnn_softmax_aggregate_vjp_cuda_scratch(const gnn_softmax_aggregate_args *args);
gnn_status gnn_softmax_aggregate_cuda(const gnn_softmax_aggregate_args *args,
                                      uint64_t stream);
gnn_status gnn_softmax_aggregate_vjp_cuda(const gnn_softmax_aggregate_args *args,
                                          uint64_t stream);

/* The instruction set the CPU kernels use: "avx512", "avx2", "neon", "c". Picked once;
 * the environment variable GNNOFFLOAD_ISA forces one that the machine has. */
const char *gnn_isa_text(void);

#ifdef __cplusplus
}
#endif

#endif
