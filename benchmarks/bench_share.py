"""Measure this machine's GPU for benchmarks/ledger/, to send in.

    python -m gnnoffload bench --share

The measuring stages of gpu-day: copies, spmm, offload. About three minutes.
"""

from benchmarks import bench_gpu_day

if __name__ == "__main__":
    bench_gpu_day.main(share=True)
