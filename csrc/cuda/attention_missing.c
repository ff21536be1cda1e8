/* attention_missing.c: attention's CUDA launchers, which are not written yet: CUDA
 * tensors are refused by name, in a build with CUDA as in one without. */
#include "gnn.h"

static gnn_status missing(const char *op) {
    return gnn_fail(GNN_ENOTSUP, "%s: there is no CUDA kernel for it yet", op);
}

int64_t gnn_attention_cuda_scratch(const gnn_attention_args *args) {
    (void)args;
    return 0;
}

int64_t gnn_attention_dst_vjp_cuda_scratch(const gnn_attention_args *args) {
    (void)args;
    return 0;
}

int64_t gnn_attention_src_vjp_cuda_scratch(const gnn_attention_args *args) {
    (void)args;
    return 0;
}

gnn_status gnn_attention_cuda(const gnn_attention_args *args, uint64_t stream) {
    (void)args, (void)stream;
    return missing("attention");
}

gnn_status gnn_attention_dst_vjp_cuda(const gnn_attention_args *args, uint64_t stream) {
    (void)args, (void)stream;
    return missing("attention_dst_vjp");
}

gnn_status gnn_attention_src_vjp_cuda(const gnn_attention_args *args, uint64_t stream) {
    (void)args, (void)stream;
    return missing("attention_src_vjp");
}
