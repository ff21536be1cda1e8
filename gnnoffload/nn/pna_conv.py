"""PNAConv: several statistics of the messages, scaled by degree; without messages."""

import torch
from torch.nn.functional import linear
from torch_geometric.nn.aggr import DegreeScalerAggregation
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.conv.pna_conv import PNAConv as PyGPNAConv

from gnnoffload import _fallback
from gnnoffload.nn import _aggregators, _guard
from gnnoffload.nn._adjacency import adjacency
from gnnoffload.nn._chunked import in_chunks
from gnnoffload.nn._degree_product import degree_product
from gnnoffload.nn._linear import linears, projected, through
from gnnoffload.reductions import aggregate


def _serves(module):
    return (
        type(module) is DegreeScalerAggregation
        and _aggregators.statistics(module.aggr) is not None
    )


class PNAConv(PyGPNAConv):
    """PyG's PNAConv; every statistic out of one gather."""

    propagate = MessagePassing.propagate  # not what PyG compiled for its own class
    serves = staticmethod(_serves)

    def forward(self, x, edge_index, edge_attr=None):
        """As in PyG; `edge_index` may also be a `gnnoffload.Graph`.

        With one layer before the aggregation its Linear [W_a, W_b, W_c] makes messages

            a_i + b_j + c_e,   a = W_a x + bias,  b = W_b x,  c = W_c edge_encoder(attr)

        so that only b is gathered: a shifts sum, mean, min and max and leaves var and
        std as they are, and c is one Linear of the attributes. With more layers the
        messages exist, 64 MiB at a time, as under `gnnoffload.chunk`.

        Args
        ----
        x : [N, in_channels]
        edge_attr : [E, edge_dim] in the order of edge_index

        Returns
        -------
        [N, out_channels]

        Memory: the statistics, [N, towers * F_in] each; with edge_attr c, [E, towers *
        F_in]. PyG makes about ten tensors of that size.
        """
        reason = _guard.blocked(self, PyGPNAConv, x) or self._reason(edge_attr)
        adj = reason or adjacency(self, edge_index, (x, x))
        if isinstance(adj, str):
            edge_index = _guard.fall_back(self, adj, edge_index)
            # propagate_type: (x: Tensor, edge_attr: OptTensor)
            return super().forward(x, edge_index, edge_attr)
        _fallback.count_fast("PNAConv")
        if len(self.pre_nns[0]) > 1:
            return self._through_messages(x, adj.graph, edge_attr)
        statistics, shift = self._statistics(x, adj.graph, edge_attr)
        return through([self.lin], self._post(x, adj.graph, statistics, shift))

    def _statistics(self, x, graph, edge_attr):
        """{name: [N, towers * F_in]} of the messages without a, and a"""
        width, first = self.F_in, [nn[0] for nn in self.pre_nns]
        on_dst, on_src, on_edge = (
            [lin.weight[:, k * width : (k + 1) * width] for lin in first]
            for k in range(3)
        )
        bias = torch.cat([lin.bias for lin in first])
        if self.divide_input:
            a, b = self._project(x, on_dst) + bias, self._project(x, on_src)
        else:
            a, b = linears(x, (torch.cat(on_dst), bias), (torch.cat(on_src), None))
        c = None
        if edge_attr is not None:
            weight, encoder = torch.cat(on_edge), self.edge_encoder
            # not linear(): the gradient of its weight is grad^T edge_attr, which takes
            # MKL ten times as long as edge_attr^T grad (E 82k, F 64, D 8: 32 and 3 ms)
            product = encoder.weight.t() @ weight.t()
            c = torch.addmm(weight @ encoder.bias, edge_attr, product)
        names = _aggregators.statistics(self.aggr_module.aggr)
        return dict(zip(names, aggregate(graph, b, names, c), strict=True)), a

    def _project(self, x, weights):
        """[N, towers * F_in]: each tower's part of x by its weight [F_in, F_in]"""
        parts = x.view(-1, self.towers, self.F_in).unbind(1)
        return torch.cat(
            [linear(part, w) for part, w in zip(parts, weights, strict=True)], dim=1
        )

    def _scales(self, degree):
        """degrees [n] -> [n, scalers]"""
        some, module = degree.clamp(min=1), self.aggr_module
        by_name = {
            "identity": lambda: torch.ones_like(degree),
            "amplification": lambda: torch.log(degree + 1) / module.avg_deg_log,
            "attenuation": lambda: module.avg_deg_log / torch.log(some + 1),
            "linear": lambda: degree / module.avg_deg_lin,
            "inverse_linear": lambda: module.avg_deg_lin / some,
        }
        return torch.stack([by_name[name]() for name in module.scaler], dim=1)

    def _post(self, x, graph, statistics, shift):
        """[N, out]: each tower's network of [x, scale * statistics for each scale], the
        second part of its first Linear by `degree_product`."""
        towers, width = self.towers, self.F_in
        n_scales, n_statistics = len(self.aggr_module.scaler), len(statistics)
        xs = [x] * towers
        if self.divide_input:
            xs = x.view(-1, towers, width).unbind(1)
        shifts, ys = [shift], [tuple(statistics.values())]
        if towers > 1:  # the gradient of a split is a copy
            shifts = shift.split(width, dim=1)
            ys = zip(*(y.split(width, dim=1) for y in ys[0]), strict=True)
        outs = []
        for x_t, shift_t, ys_t, nn in zip(xs, shifts, ys, self.post_nns, strict=True):
            first = nn[0]
            on_x = first.weight[:, :width]
            on_statistics = first.weight[:, width:].t()
            out = projected(x_t, on_x, first.bias) + degree_product(
                graph,
                dict(zip(statistics, ys_t, strict=True)),
                shift_t,
                self._scales,
                on_statistics.view(n_scales, n_statistics, width, -1),
            )
            for module in nn[1:]:
                out = module(out)
            outs.append(out)
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)

    def _through_messages(self, x, graph, edge_attr):
        if self.divide_input:
            x = x.view(-1, self.towers, self.F_in)
        else:
            x = x.view(-1, 1, self.F_in).repeat(1, self.towers, 1)
        out = in_chunks(self, graph, x=x, edge_attr=edge_attr)
        out = torch.cat([x, out], dim=-1)
        outs = [nn(out[:, t]) for t, nn in enumerate(self.post_nns)]
        return self.lin(torch.cat(outs, dim=1))

    def _reason(self, edge_attr):
        """What only this layer cannot do; None if there is nothing."""
        if (edge_attr is None) != (self.edge_dim is None):
            return "edge_attr and edge_dim go together"
        if edge_attr is not None and edge_attr.dim() != 2:
            return "edge_attr is not a matrix"
        firsts = [nn[0] for nns in (self.pre_nns, self.post_nns) for nn in nns]
        if self.edge_dim is not None:
            firsts.append(self.edge_encoder)
        if not all(_guard.is_plain(lin) for lin in firsts):
            return "a Linear has hooks, is lazy or runs under autocast"
        return None

    def __prepare_scriptable__(self):
        return _guard.script_with_pyg(self, PyGPNAConv)
