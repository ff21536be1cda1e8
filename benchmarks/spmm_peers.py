"""Other ways to compute y[i] = sum of x[j] over edges (j -> i), each as a user would
write it with everything cached that can be. `peers(...)` gives {name: function of x};
what a peer cannot do (a dtype, a package not installed) is left out."""

import warnings

import torch
from torch.nn.functional import embedding_bag

warnings.filterwarnings("ignore", message="Sparse")


class _Linear(torch.autograd.Function):
    """y = A x with A and its transpose given as functions."""

    @staticmethod
    def forward(ctx, x, product, transposed):
        ctx.transposed = transposed
        return product(x)

    @staticmethod
    def backward(ctx, grad_y):
        return ctx.transposed(grad_y), None, None


def _with_transpose(product, transposed):
    return lambda x: _Linear.apply(x, product, transposed)


def _compressed(row, col, n_rows):
    """rowptr, col of the entries sorted by (row, col)."""
    order = (row * n_rows + col).argsort()
    rowptr = torch.zeros(n_rows + 1, dtype=torch.int64, device=row.device)
    rowptr[1:] = torch.bincount(row, minlength=n_rows).cumsum(0)
    return rowptr, col[order].contiguous()


def _bag(rowptr, col):
    return lambda x: embedding_bag(col, x, rowptr, mode="sum", include_last_offset=True)


def _torch_csr(rowptr, col, n, dtype):
    ones = torch.ones(col.numel(), dtype=dtype, device=col.device)
    return torch.sparse_csr_tensor(rowptr, col, ones, (n, n))


def _scipy(rowptr, col, n, dtype):
    from scipy.sparse import csr_array

    ones = torch.ones(col.numel(), dtype=dtype).numpy()
    matrix = csr_array((ones, col.int().numpy(), rowptr.numpy()), shape=(n, n))
    return lambda x: torch.from_numpy(matrix @ x.detach().numpy())


def _pyg(edge_index):
    from torch_geometric.nn import SimpleConv

    conv = SimpleConv(aggr="sum")
    return lambda x: conv(x, edge_index)


def _pyg_edge_index(edge_index, n):
    from torch_geometric import EdgeIndex

    form = EdgeIndex(edge_index, sparse_size=(n, n), sort_order="col").fill_cache_()
    return lambda x: form.matmul(x, transpose=True)


def peers(edge_index, n, dtype, messages=True):
    """Every peer of a graph of n nodes; `messages`: also those that write [E, F]."""
    source, destination = edge_index
    order = (destination * n + source).argsort()
    by_destination = edge_index[:, order].contiguous()
    rowptr, col = _compressed(destination, source, n)
    colptr, row = _compressed(source, destination, n)

    def csr_cached():
        a, at = _torch_csr(rowptr, col, n, dtype), _torch_csr(colptr, row, n, dtype)
        return _with_transpose(lambda x: a @ x, lambda g: at @ g)

    def csr_native():
        a = _torch_csr(rowptr, col, n, dtype)
        return lambda x: torch.sparse.mm(a, x, "sum")

    makers = {
        "embedding_bag": lambda: _with_transpose(_bag(rowptr, col), _bag(colptr, row)),
        "csr_cachedT": csr_cached,
        "sparse.mm": csr_native,
        "EdgeIndex": lambda: _pyg_edge_index(by_destination, n),
        "scipy": lambda: _with_transpose(
            _scipy(rowptr, col, n, dtype), _scipy(colptr, row, n, dtype)
        ),
    }
    if messages:
        makers["pyg_sorted"] = lambda: _pyg(by_destination)
        makers["pyg"] = lambda: _pyg(edge_index)

    found = {}
    for name, make in makers.items():
        try:
            found[name] = make()
        except (ImportError, TypeError, RuntimeError):
            continue
    return found
