/* edge_softmax_kernels.cuh: softmax over the entries of each row on CUDA, and its vjp.
 *
 * A lane has one row and one head and walks the entries in order, twice: for the row's
 * sum, and to write. Neighbouring lanes have neighbouring heads, whose numbers lie side by
 * side; lanes do not meet. A row with more than GNN_CUDA_CHUNK entries is cut: each chunk
 * leaves its sum in scratch, one lane joins a row's in order, and the chunks are walked
 * again to write. Sums are joined chunk by chunk in a row that stays whole, too: its bits
 * depend on that row alone.
 *
 *   EDGE_SOFTMAX      sum of exp(s), as (max, sum)   alpha = exp((s - max) - log(sum))
 *   EDGE_SOFTMAX_VJP  sum of alpha * dalpha          ds = alpha * (dalpha - sum)
 */
#ifndef GNN_EDGE_SOFTMAX_KERNELS_CUH
#define GNN_EDGE_SOFTMAX_KERNELS_CUH

#include "cuda/lanes.cuh"
#include "cuda/softmax.cuh"

enum edge_softmax_mode { EDGE_SOFTMAX, EDGE_SOFTMAX_VJP };

/* Device pointers. [n_edges, H] in the caller's order, contiguous. */
template <typename T> struct edge_softmax_view {
    typedef typename gnn_accumulator<T>::type A;
    const int64_t *rowptr; // [n_rows + 1]
    const void *eid;       // [n_edges] or NULL
    const int64_t *split;  // [n_split, 2]: row and chunk
    const T *given;        // [n_edges, H] s; vjp: dalpha
    const T *alpha;        // [n_edges, H] vjp
    T *out;                // [n_edges, H] alpha; vjp: ds
    A *parts;              // [n_split, H, 2]
    int64_t n_rows, n_split;
    int n_heads, group_shift;
    bool eid_is_64;
};

/* ---------------------------------------------------------------------------- one row */

template <typename A, int MODE> struct edge_softmax_sum {
    A max, sum; // vjp: 0 and the sum

    __device__ __forceinline__ edge_softmax_sum()
        : max(MODE == EDGE_SOFTMAX ? -(A)INFINITY : (A)0), sum(0) {}

    __device__ __forceinline__ void merge(A other_max, A other_sum) {
        if (MODE == EDGE_SOFTMAX) {
            gnn_exp_sum<A> total(max, sum);
            A theirs;
            total.merge(gnn_exp_sum<A>(other_max, other_sum), &theirs);
            max = total.max;
            sum = total.sum;
        } else {
            sum += other_sum;
        }
    }

    __device__ __forceinline__ void add(A given, A alpha) {
        if (MODE == EDGE_SOFTMAX) {
            merge(given, 1);
        } else {
            sum += alpha * given;
        }
    }

    /* After the last entry; then result() is what an entry gets. */
    __device__ __forceinline__ void finish() {
        if (MODE == EDGE_SOFTMAX) {
            sum = log_of(sum);
        }
    }

    __device__ __forceinline__ A result(A given, A alpha) const {
        return MODE == EDGE_SOFTMAX ? exp_of((given - max) - sum)
                                    : alpha * (given - sum);
    }
};

/* Calls visit(place, given, alpha) for each of n entries from `begin` on; place counts
 * the elements of [n_edges, H]. */
template <typename T, int MODE, typename Visit>
static __device__ __forceinline__ void visit_entries(const edge_softmax_view<T> &s,
                                                     int64_t begin, int64_t n, int head,
                                                     Visit visit) {
    typedef typename gnn_accumulator<T>::type A;
    for (int64_t base = 0; base < n; base += GNN_EDGES_IN_FLIGHT) {
        int64_t place[GNN_EDGES_IN_FLIGHT];
        A given[GNN_EDGES_IN_FLIGHT], alpha[GNN_EDGES_IN_FLIGHT];
        GNN_UNROLL
        for (int j = 0; j < GNN_EDGES_IN_FLIGHT; j++) {
            place[j] = 0;
            if (base + j < n) {
                place[j] = edge_of(s.eid, s.eid_is_64, begin + base + j) * s.n_heads;
            }
        }
        GNN_UNROLL
        for (int j = 0; j < GNN_EDGES_IN_FLIGHT; j++) {
            given[j] = alpha[j] = 0;
            if (base + j < n) {
                given[j] = widen(s.given[place[j] + head]);
                alpha[j] =
                    MODE == EDGE_SOFTMAX ? (A)0 : (A)widen(s.alpha[place[j] + head]);
            }
        }
        GNN_UNROLL
        for (int j = 0; j < GNN_EDGES_IN_FLIGHT; j++) {
            if (base + j < n) {
                visit(place[j] + head, given[j], alpha[j]);
            }
        }
    }
}

template <typename T, int MODE>
static __device__
    __forceinline__ edge_softmax_sum<typename gnn_accumulator<T>::type, MODE>
    sum_of(const edge_softmax_view<T> &s, int64_t begin, int64_t n, int head) {
    typedef typename gnn_accumulator<T>::type A;
    edge_softmax_sum<A, MODE> sum;
    visit_entries<T, MODE>(s, begin, n, head,
                           [&](int64_t, A given, A alpha) { sum.add(given, alpha); });
    return sum;
}

template <typename T, int MODE>
static __device__ __forceinline__ void
write_results(const edge_softmax_view<T> &s,
              const edge_softmax_sum<typename gnn_accumulator<T>::type, MODE> &sum,
              int64_t begin, int64_t n, int head) {
    typedef typename gnn_accumulator<T>::type A;
    visit_entries<T, MODE>(s, begin, n, head, [&](int64_t place, A given, A alpha) {
        narrow(sum.result(given, alpha), s.out + place);
    });
}

/* Entries of chunk i of the list, from *begin on. */
template <typename T>
static __device__ __forceinline__ int64_t chunk_entries(const edge_softmax_view<T> &s,
                                                        int64_t i, int64_t *begin) {
    const int64_t row = s.split[2 * i];
    *begin = s.rowptr[row] + s.split[2 * i + 1] * GNN_CUDA_CHUNK;
    const int64_t left = s.rowptr[row + 1] - *begin;
    return left < GNN_CUDA_CHUNK ? left : GNN_CUDA_CHUNK;
}

/* ----------------------------------------------------------------------------- kernels */

/* Chunks: their sums. Rows that are not cut: all there is to do. */
template <typename T, int MODE>
__global__ void __launch_bounds__(GNN_BLOCK_THREADS, GNN_BLOCKS_AT_LEAST)
    edge_softmax_rows_kernel(const edge_softmax_view<T> s) {
    typedef typename gnn_accumulator<T>::type A;
    const gnn_place_in_warp at(s.group_shift);
    for (int head = (int)blockIdx.y * at.lanes + at.member; head < s.n_heads;
         head += (int)gridDim.y * at.lanes) {
        for (int64_t i = at.warp * at.groups + at.group; i < s.n_split + s.n_rows;
             i += at.warps * at.groups) {
            int64_t begin;
            if (i < s.n_split) {
                const int64_t n = chunk_entries(s, i, &begin);
                const edge_softmax_sum<A, MODE> sum =
                    sum_of<T, MODE>(s, begin, n, head);
                A *part = s.parts + (i * s.n_heads + head) * 2;
                part[0] = sum.max;
                part[1] = sum.sum;
                continue;
            }
            begin = s.rowptr[i - s.n_split];
            const int64_t n = s.rowptr[i - s.n_split + 1] - begin;
            if (s.n_split > 0 && n > GNN_CUDA_CHUNK) {
                continue; // in the list
            }
            edge_softmax_sum<A, MODE> total;
            for (int64_t from = 0; from < n; from += GNN_CUDA_CHUNK) {
                const int64_t left = n - from;
                const edge_softmax_sum<A, MODE> sum = sum_of<T, MODE>(
                    s, begin + from, left < GNN_CUDA_CHUNK ? left : GNN_CUDA_CHUNK,
                    head);
                total.merge(sum.max, sum.sum);
            }
            total.finish();
            write_results<T, MODE>(s, total, begin, n, head);
        }
    }
}

/* The sum of each row that is cut, into the place of its first chunk's. */
template <typename T, int MODE>
__global__ void __launch_bounds__(GNN_BLOCK_THREADS, GNN_BLOCKS_AT_LEAST)
    edge_softmax_join_kernel(const edge_softmax_view<T> s) {
    typedef typename gnn_accumulator<T>::type A;
    const gnn_place_in_warp at(s.group_shift);
    for (int head = (int)blockIdx.y * at.lanes + at.member; head < s.n_heads;
         head += (int)gridDim.y * at.lanes) {
        for (int64_t i = at.warp * at.groups + at.group; i < s.n_split;
             i += at.warps * at.groups) {
            if (s.split[2 * i + 1] != 0) {
                continue;
            }
            const int64_t row = s.split[2 * i];
            const int64_t degree = s.rowptr[row + 1] - s.rowptr[row];
            const int64_t n_chunks = (degree + GNN_CUDA_CHUNK - 1) / GNN_CUDA_CHUNK;
            edge_softmax_sum<A, MODE> total;
            A *parts = s.parts + (i * s.n_heads + head) * 2;
            GNN_UNROLL_BY(4)
            for (int64_t c = 0; c < n_chunks; c++) {
                const A *part = parts + c * s.n_heads * 2;
                total.merge(part[0], part[1]);
            }
            total.finish();
            parts[0] = total.max;
            parts[1] = total.sum;
        }
    }
}

/* What the entries of rows that are cut get. */
template <typename T, int MODE>
__global__ void __launch_bounds__(GNN_BLOCK_THREADS, GNN_BLOCKS_AT_LEAST)
    edge_softmax_chunks_kernel(const edge_softmax_view<T> s) {
    typedef typename gnn_accumulator<T>::type A;
    const gnn_place_in_warp at(s.group_shift);
    for (int head = (int)blockIdx.y * at.lanes + at.member; head < s.n_heads;
         head += (int)gridDim.y * at.lanes) {
        for (int64_t i = at.warp * at.groups + at.group; i < s.n_split;
             i += at.warps * at.groups) {
            const int64_t first = i - s.split[2 * i + 1];
            const A *part = s.parts + (first * s.n_heads + head) * 2;
            edge_softmax_sum<A, MODE> total;
            total.max = part[0];
            total.sum = part[1];
            int64_t begin;
            const int64_t n = chunk_entries(s, i, &begin);
            write_results<T, MODE>(s, total, begin, n, head);
        }
    }
}

#endif
