/* nocuda.c: the CUDA launchers of a library that was built without nvcc. */
#include "gnn.h"

static gnn_status not_built(const char *op) {
    return gnn_fail(GNN_ENOTSUP,
                    "%s: the tensors are on a CUDA device, but this gnnoffload was "
                    "built without CUDA: build it where nvcc is on PATH",
                    op);
}

int64_t gnn_spmm_cuda_scratch(const gnn_csr *a, int64_t n_features, gnn_dtype dtype) {
    (void)a, (void)n_features, (void)dtype;
    return 0;
}

gnn_status gnn_spmm_cuda(const gnn_spmm_args *args, uint64_t stream) {
    (void)args, (void)stream;
    return not_built("spmm");
}

gnn_status gnn_sddmm_cuda(const gnn_sddmm_args *args, uint64_t stream) {
    (void)args, (void)stream;
    return not_built("sddmm");
}

gnn_status gnn_gine_cuda(const gnn_gine_args *args, uint64_t stream) {
    (void)args, (void)stream;
    return not_built("gine");
}

gnn_status gnn_gine_vjp_cuda(const gnn_gine_vjp_args *args, uint64_t stream) {
    (void)args, (void)stream;
    return not_built("gine_vjp");
}

int64_t gnn_gated_cuda_scratch(const gnn_gated_args *args) {
    (void)args;
    return 0;
}

gnn_status gnn_gated_cuda(const gnn_gated_args *args, uint64_t stream) {
    (void)args, (void)stream;
    return not_built("gated");
}

gnn_status gnn_gated_vjp_cuda(const gnn_gated_args *args, uint64_t stream) {
    (void)args, (void)stream;
    return not_built("gated_vjp");
}

int64_t gnn_edge_softmax_cuda_scratch(const gnn_edge_softmax_args *args) {
    (void)args;
    return 0;
}

gnn_status gnn_edge_softmax_cuda(const gnn_edge_softmax_args *args, uint64_t stream) {
    (void)args, (void)stream;
    return not_built("edge_softmax");
}

gnn_status gnn_edge_softmax_vjp_cuda(const gnn_edge_softmax_args *args,
                                     uint64_t stream) {
    (void)args, (void)stream;
    return not_built("edge_softmax_vjp");
}

int64_t gnn_heads_spmm_cuda_scratch(const gnn_heads_args *args) {
    (void)args;
    return 0;
}

gnn_status gnn_heads_spmm_cuda(const gnn_heads_args *args, uint64_t stream) {
    (void)args, (void)stream;
    return not_built("heads_spmm");
}

gnn_status gnn_heads_sddmm_cuda(const gnn_heads_args *args, uint64_t stream) {
    (void)args, (void)stream;
    return not_built("heads_sddmm");
}

int64_t gnn_aggregate_cuda_scratch(const gnn_aggregate_args *args) {
    (void)args;
    return 0;
}

int64_t gnn_aggregate_vjp_cuda_scratch(const gnn_aggregate_args *args) {
    (void)args;
    return 0;
}

gnn_status gnn_aggregate_cuda(const gnn_aggregate_args *args, uint64_t stream) {
    (void)args, (void)stream;
    return not_built("aggregate");
}

gnn_status gnn_aggregate_vjp_cuda(const gnn_aggregate_args *args, uint64_t stream) {
    (void)args, (void)stream;
    return not_built("aggregate_vjp");
}

int64_t gnn_softmax_aggregate_cuda_scratch(const gnn_softmax_aggregate_args *args) {
    (void)args;
    return 0;
}

int64_t gnn_softmax_aggregate_vjp_cuda_scratch(const gnn_softmax_aggregate_args *args) {
    (void)args;
    return 0;
}

gnn_status gnn_softmax_aggregate_cuda(const gnn_softmax_aggregate_args *args,
                                      uint64_t stream) {
    (void)args, (void)stream;
    return not_built("softmax_aggregate");
}

gnn_status gnn_softmax_aggregate_vjp_cuda(const gnn_softmax_aggregate_args *args,
                                          uint64_t stream) {
    (void)args, (void)stream;
    return not_built("softmax_aggregate_vjp");
}

int64_t gnn_attention_cuda_scratch(const gnn_attention_args *args) {
    (void)args;
    return 0;
}

gnn_status gnn_attention_cuda(const gnn_attention_args *args, uint64_t stream) {
    (void)args, (void)stream;
    return not_built("attention");
}

int64_t gnn_attention_dst_vjp_cuda_scratch(const gnn_attention_args *args) {
    (void)args;
    return 0;
}

gnn_status gnn_attention_dst_vjp_cuda(const gnn_attention_args *args, uint64_t stream) {
    (void)args, (void)stream;
    return not_built("attention_dst_vjp");
}

int64_t gnn_attention_src_vjp_cuda_scratch(const gnn_attention_args *args) {
    (void)args;
    return 0;
}

gnn_status gnn_attention_src_vjp_cuda(const gnn_attention_args *args, uint64_t stream) {
    (void)args, (void)stream;
    return not_built("attention_src_vjp");
}
