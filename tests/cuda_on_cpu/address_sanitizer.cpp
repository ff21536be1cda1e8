/* address_sanitizer.cpp: the real launchers under AddressSanitizer and
 * UndefinedBehaviorSanitizer, which see what the access hooks do not: local arrays of a
 * kernel, and the executor itself. Buffers are of exact size; integer data, so results
 * are exact. `address_sanitizer short` makes x one element too short.
 */
#include "executor.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

extern "C" void exec_set_order(int order, uint64_t seed);
extern "C" const char *exec_order_text(int order);

static double value_at(const void *p, gnn_dtype dtype, int64_t i) {
    switch (dtype) {
    case GNN_F32:
        return static_cast<const float *>(p)[i];
    case GNN_F64:
        return static_cast<const double *>(p)[i];
    case GNN_BF16:
        return __bfloat162float(static_cast<const __nv_bfloat16 *>(p)[i]);
    default:
        return __half2float(static_cast<const __half *>(p)[i]);
    }
}

static void set_value(void *p, gnn_dtype dtype, int64_t i, double v) {
    switch (dtype) {
    case GNN_F32:
        static_cast<float *>(p)[i] = float(v);
        break;
    case GNN_F64:
        static_cast<double *>(p)[i] = v;
        break;
    case GNN_BF16:
        static_cast<__nv_bfloat16 *>(p)[i] = __float2bfloat16_rn(float(v));
        break;
    default:
        static_cast<__half *>(p)[i] = __float2half_rn(float(v));
    }
}

typedef std::unique_ptr<void, decltype(&free)> Buffer;

static Buffer buffer(int64_t n, gnn_dtype dtype) {
    return Buffer(malloc(size_t(n * gnn_dtype_size(dtype))), free);
}

static Buffer integers(int64_t n, gnn_dtype dtype, int64_t factor) {
    Buffer p = buffer(n, dtype);
    for (int64_t i = 0; i < n; i++) {
        set_value(p.get(), dtype, i, double(i * factor % 7 - 3));
    }
    return p;
}

static void check(bool right, const char *what, gnn_dtype dtype, int64_t n_features) {
    if (!right) {
        printf("%s of %s, F = %lld: %s\n", what, gnn_dtype_text(dtype),
               (long long)n_features, gnn_message());
        exit(1);
    }
}

/* Row i has the i-th degree, its columns step through 0..n_cols-1. */
static void run(gnn_dtype dtype, int64_t F, bool too_short) {
    const int64_t degrees[] = {0, 1, 33, 300, 5, 0}, n_rows = 6, n_cols = 9;
    std::vector<int64_t> rowptr = {0}, split = {3, 0, 3, 1};
    std::vector<int32_t> col;
    for (int64_t degree : degrees) {
        for (int64_t k = 0; k < degree; k++) {
            col.push_back(int32_t((degree + 5 * k) % n_cols));
        }
        rowptr.push_back(int64_t(col.size()));
    }
    const int64_t n_edges = int64_t(col.size());
    Buffer x = integers(n_cols * F - too_short, dtype, 3),
           u = integers(n_rows * F, dtype, 5);
    Buffer weight = integers(n_edges, dtype, 1);
    Buffer y = buffer(n_rows * F, dtype), z = buffer(n_edges, dtype);
    gnn_csr a = {n_rows,  n_cols,       n_edges, rowptr.data(), col.data(), nullptr,
                 GNN_I32, split.data(), 2};
    Buffer scratch(malloc(size_t(gnn_spmm_cuda_scratch(&a, F, dtype))), free);
    const gnn_spmm_args spmm = {
        a,       dtype,         F,      F, x.get(), weight.get(), nullptr,
        nullptr, scratch.get(), y.get()};
    const gnn_sddmm_args sddmm = {a,       dtype,   F,       F,       F,
                                  u.get(), x.get(), nullptr, nullptr, z.get()};
    check(gnn_spmm_cuda(&spmm, 0) == GNN_OK, "spmm", dtype, F);
    check(gnn_sddmm_cuda(&sddmm, 0) == GNN_OK, "sddmm", dtype, F);
    for (int64_t i = 0; i < n_rows; i++) {
        std::vector<double> sum(size_t(F), 0.0);
        for (int64_t e = rowptr[size_t(i)]; e < rowptr[size_t(i) + 1]; e++) {
            double dot = 0;
            for (int64_t f = 0; f < F; f++) {
                const double v = value_at(x.get(), dtype, col[size_t(e)] * F + f);
                sum[size_t(f)] += value_at(weight.get(), dtype, e) * v;
                dot += value_at(u.get(), dtype, i * F + f) * v;
            }
            Buffer rounded = buffer(1, dtype);
            set_value(rounded.get(), dtype, 0, dot);
            check(value_at(z.get(), dtype, e) == value_at(rounded.get(), dtype, 0),
                  "a wrong sddmm", dtype, F);
        }
        for (int64_t f = 0; f < F; f++) {
            Buffer rounded = buffer(1, dtype);
            set_value(rounded.get(), dtype, 0, sum[size_t(f)]);
            check(value_at(y.get(), dtype, i * F + f) ==
                      value_at(rounded.get(), dtype, 0),
                  "a wrong spmm", dtype, F);
        }
    }
}

int main(int argc, char **argv) {
    const bool too_short = argc == 2 && strcmp(argv[1], "short") == 0;
    int n = 0;
    for (int order = 0; exec_order_text(order) != nullptr; order++) {
        exec_set_order(order, 7);
        for (gnn_dtype dtype : {GNN_F32, GNN_F64, GNN_BF16, GNN_F16}) {
            for (int64_t F : {1, 3, 4, 8, 33, 64, 129}) {
                run(dtype, F, too_short);
                n++;
            }
        }
    }
    printf("%d runs\n", n);
    return 0;
}
