/* softmax.cuh: sums of exponentials that arrive one by one, or part by part.
 *
 * Held as (max, sum) with  sum of exp(s) = sum * exp(max):  no exponent is ever above 0,
 * and one exp is taken for each score. exp and log are CUDA's own, within 2 ulp.
 */
#ifndef GNN_SOFTMAX_CUH
#define GNN_SOFTMAX_CUH

#include "cuda/cuda.cuh"

static __device__ __forceinline__ float exp_of(float v) {
    return expf(v);
}
static __device__ __forceinline__ double exp_of(double v) {
    return exp(v);
}
static __device__ __forceinline__ float log_of(float v) {
    return logf(v);
}
static __device__ __forceinline__ double log_of(double v) {
    return log(v);
}
static __device__ __forceinline__ float magnitude(float v) {
    return fabsf(v);
}
static __device__ __forceinline__ double magnitude(double v) {
    return fabs(v);
}

/* Nothing yet: (-inf, 0). A score of NaN makes the sum NaN and leaves max. */
template <typename A> struct gnn_exp_sum {
    A max, sum;

    __device__ __forceinline__ gnn_exp_sum() : max(-(A)INFINITY), sum(0) {}
    __device__ __forceinline__ gnn_exp_sum(A m, A s) : max(m), sum(s) {}

    /* Takes in another sum; (s, 1) is the score s. Equal maxima, of infinities too, need
     * no rescaling. Returns what the sum so far was multiplied by: whoever keeps a sum of
     * exp(s) * value does the same with it and adds  theirs * part  of theirs. */
    __device__ __forceinline__ A merge(gnn_exp_sum part, A *theirs) {
        const A smaller = part.max == max ? (A)1 : exp_of(-magnitude(part.max - max));
        const bool up = part.max > max;
        const A ours = up ? smaller : (A)1;
        *theirs = up ? (A)1 : smaller; // NaN where the score is
        sum = sum * ours + part.sum * *theirs;
        max = up ? part.max : max;
        return ours;
    }

    __device__ __forceinline__ void add(A score) {
        A unused;
        merge(gnn_exp_sum(score, 1), &unused);
    }

    __device__ __forceinline__ A log_sum() const { // -inf where nothing was added
        return max + log_of(sum);
    }
};

#endif
