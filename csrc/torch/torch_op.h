/* torch_op.h: what every boxed dispatcher op does around its own few lines.
 *
 * torch calls fn(stack, nargs, nrets). The op owns the tensors in its arguments, so
 * torch_op_call takes them, switches grad mode off, runs the body, puts grad mode back,
 * frees everything and only then either writes the outputs or raises: an exception
 * leaves no handle behind. A body never throws; it returns a gnn_status. The first
 * tensor says on which device an op runs; the body of a CUDA op runs with that device
 * current and queues its work on torch's current stream.
 */
#ifndef TORCH_OP_H
#define TORCH_OP_H

#include "gnn.h"
#include "torch/torch_abi.h"

enum { TORCH_OP_MAX_TENSORS = 48, TORCH_OP_MAX_OUTPUTS = 12 };

struct torch_op {
    const char *name;        // "spmm", for messages
    const StableIValue *arg; // the arguments as torch passed them
    uint64_t n_outputs;
    int32_t device_type, device_index; // of the first tensor
    bool is_cuda;
    uint64_t stream; // CUDA: torch's current stream on that device
    AtenTensorHandle output[TORCH_OP_MAX_OUTPUTS]; // filled by the body
    int n_owned;
    AtenTensorHandle owned[TORCH_OP_MAX_TENSORS]; // freed when the body is done
};

/* A tensor as a kernel reads it; borrowed from its handle. */
struct torch_view {
    AtenTensorHandle handle;
    const void *data;
    int64_t dim, numel;
    const int64_t *size, *stride;
    int32_t dtype; // torch's code
};

typedef gnn_status (*torch_op_body)(struct torch_op *op);
void torch_op_call(const char *name, torch_op_body body, uint64_t n_tensors,
                   StableIValue *stack, uint64_t n_args, uint64_t n_outputs);

/* Argument i, which must be a tensor (the first n_tensors arguments are), an int or a
 * float.
 * GNN_ETYPE for a tensor on another device than the op's, unless it is empty. */
gnn_status torch_op_tensor(struct torch_op *op, uint64_t i, struct torch_view *view);
int64_t torch_op_int(const struct torch_op *op, uint64_t i);
double torch_op_float(const struct torch_op *op, uint64_t i);

/* The dtype of a view. GNN_ETYPE naming `argument` when the core does not have it. */
gnn_status torch_op_dtype(const struct torch_op *op, const struct torch_view *view,
                          const char *argument, gnn_dtype *dtype);

/* Makes *view one whose last dimension is contiguous and whose data is aligned, copying
 * when it has to. A matrix keeps its row stride. */
gnn_status torch_op_pack(struct torch_op *op, struct torch_view *view);

/* A new contiguous tensor [size0] or [size0, size1] (size1 < 0: one dimension),
 * uninitialised; with output >= 0 it becomes that output, else it is freed at the end. */
gnn_status torch_op_empty(struct torch_op *op, int output, int32_t dtype, int64_t size0,
                          int64_t size1, void **data);

/* Scratch of `bytes`, 64-byte aligned, NULL for 0. */
gnn_status torch_op_scratch(struct torch_op *op, int64_t bytes, void **data);

/* torch_op_args.c: arguments of message-passing ops; errors name `argument`.
 *   graph       six tensors from argument `first` on, then n_rows and n_cols; only the
 *               first half is read; transpose reads the second
 *   matrix      dense [n_rows, F] of *dtype, which is set when `first`
 *   vector      [n] of dtype, or an empty one: *data is NULL
 *   row_stride  in elements; a matrix of one row or none may have any */
gnn_status torch_op_graph(struct torch_op *op, uint64_t first, gnn_csr *a);
gnn_status torch_op_transpose(struct torch_op *op, uint64_t first, gnn_csr *a);
gnn_status torch_op_matrix(struct torch_op *op, uint64_t i, const char *argument,
                           int64_t n_rows, bool first, gnn_dtype *dtype,
                           struct torch_view *view);
gnn_status torch_op_vector(struct torch_op *op, uint64_t i, const char *argument,
                           int64_t n, gnn_dtype dtype, const void **data);
int64_t torch_op_row_stride(const struct torch_view *view);

int32_t torch_dtype_code(gnn_dtype dtype);

/* One op of the namespace gnnoffload and its kernel: for CPU tensors, and for CUDA
 * tensors too where it says so. */
struct torch_op_definition {
    const char *schema, *name;
    void (*kernel)(StableIValue *stack, uint64_t n_args, uint64_t n_outputs);
    bool on_cuda;
};

/* Defines a table of ops that ends with a NULL schema. false when torch refuses one. */
bool torch_ops_define(const struct torch_op_definition *ops);

/* The ops of each family. */
extern const struct torch_op_definition torch_ops_graph[], torch_ops_spmm[],
    torch_ops_gine[], torch_ops_gated[], torch_ops_heads[], torch_ops_attention[],
    torch_ops_reduce[];

#endif
