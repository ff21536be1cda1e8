/* reduce_rows.cuh: what reductions over rows of messages share.
 *
 * Items are spmm's (spmm_kernels.cuh). A cursor says in which row of its item a group is,
 * messages are x[col[e], :] + edge[eid[e], :], and rows of the accumulator's type are
 * loaded and stored 16 bytes at a time where those of T are.
 */
#ifndef GNN_REDUCE_ROWS_CUH
#define GNN_REDUCE_ROWS_CUH

#include "cuda/softmax.cuh"
#include "cuda/spmm_kernels.cuh"

static __device__ __forceinline__ float root_of(float v) {
    return sqrtf(v);
}
static __device__ __forceinline__ double root_of(double v) {
    return sqrt(v);
}

/* A matrix [*, F] whose rows are `stride` elements apart; at NULL: absent. */
template <typename T> struct reduce_matrix {
    const T *at;
    int64_t stride;
};

/* ------------------------------------------------------------------------------ cursor */

/* Where a group is in its item; entries are counted from the item's first. */
struct reduce_cursor {
    const int64_t *rowptr; // [n_rows + 1]
    const spmm_item &item;
    int row;   // of the item
    int begin; // of this row; below 0 in a chunk that is not its row's first
    int cut, end, next_end; // ends of this chunk, of this row, of the row after it

    __device__ __forceinline__ reduce_cursor(const int64_t *p, const spmm_item &it)
        : rowptr(p), item(it), row(0), begin(0), end(0), next_end(0) {
        if (item.slot >= 0) {
            begin = (int)(__ldg(rowptr + item.row) - item.entry);
            end = item.n;
        } else if (item.n_rows > 0) {
            end = end_of(0);
            look_ahead();
        }
        cut = end < SPMM_CHUNK ? end : (int)SPMM_CHUNK;
    }

    __device__ __forceinline__ int end_of(int r) const {
        return (int)(__ldg(rowptr + item.row + r + 1) - item.entry);
    }

    __device__ __forceinline__ void look_ahead() {
        if (row + 1 < item.n_rows) {
            next_end = end_of(row + 1);
        }
    }

    /* Past `cut`: into the next chunk of this row, or the next row. */
    __device__ __forceinline__ void advance() {
        if (cut == end) {
            row++;
            begin = end;
            end = next_end;
            look_ahead();
        }
        cut = end < cut + SPMM_CHUNK ? end : cut + SPMM_CHUNK;
    }
};

/* ------------------------------------------------------------------- rows of other types */

template <typename U, int SIZE> struct reduce_elements {
    U at[SIZE];
};

/* A lane's elements of a row of U, the columns of which are those of rows of T. */
template <typename U, typename Columns>
static __device__ __forceinline__ reduce_elements<U, Columns::pack::SIZE>
load_elements(const U *row, const Columns &columns, bool wanted) {
    enum { SIZE = Columns::pack::SIZE, STEP = GNN_PACK_BYTES / (int)sizeof(U) };
    reduce_elements<U, SIZE> out = {};
    if constexpr (Columns::IS_WIDE && SIZE % STEP == 0) {
        if (wanted && columns.has(0)) {
            GNN_UNROLL
            for (int k = 0; k < SIZE; k += STEP) {
                const uint4 raw = __ldg((const uint4 *)(row + columns.first + k));
                memcpy(&out.at[k], &raw, sizeof raw);
            }
        }
    } else {
        GNN_UNROLL
        for (int k = 0; k < SIZE; k++) {
            if (wanted && columns.has(k)) {
                out.at[k] = row[columns.first + k * columns.step];
            }
        }
    }
    return out;
}

template <typename U, typename Columns>
static __device__ __forceinline__ void
store_elements(U *row, const Columns &columns,
               const reduce_elements<U, Columns::pack::SIZE> &in) {
    enum { SIZE = Columns::pack::SIZE, STEP = GNN_PACK_BYTES / (int)sizeof(U) };
    if constexpr (Columns::IS_WIDE && SIZE % STEP == 0) {
        if (columns.has(0)) {
            GNN_UNROLL
            for (int k = 0; k < SIZE; k += STEP) {
                uint4 raw;
                memcpy(&raw, &in.at[k], sizeof raw);
                *(uint4 *)(row + columns.first + k) = raw;
            }
        }
    } else {
        GNN_UNROLL
        for (int k = 0; k < SIZE; k++) {
            if (columns.has(k)) {
                row[columns.first + k * columns.step] = in.at[k];
            }
        }
    }
}

#endif
