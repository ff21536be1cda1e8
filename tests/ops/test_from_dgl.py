"""Graph.from_dgl, on a stand-in with the part of DGL's interface that it reads."""

import pytest
import torch
from graph_cases import GRAPHS

import gnnoffload as go

EDGES, SIZE = GRAPHS["bipartite"]


class Dgl:
    """relations: {(source type, name, destination type): edges}; a block has two sets
    of nodes under one type."""

    def __init__(self, relations, n_src, n_dst):
        self.relations, self.n_src, self.n_dst = relations, n_src, n_dst

    @property
    def canonical_etypes(self):
        return list(self.relations)

    def to_canonical_etype(self, etype):
        (found,) = [r for r in self.relations if etype in (r, r[1])]
        return found

    def edges(self, form="uv", order="eid", etype=None):
        assert form == "uv" and order == "eid"
        return tuple(self.relations[self.to_canonical_etype(etype)])

    def num_src_nodes(self, ntype):
        return self.n_src[ntype]

    def num_dst_nodes(self, ntype):
        return self.n_dst[ntype]


def test_a_homogeneous_graph_keeps_the_order_of_its_edges():
    edges, (n, _) = GRAPHS["random"]
    g = Dgl({("_N", "_E", "_N"): edges}, {"_N": n}, {"_N": n})
    graph = go.Graph.from_dgl(g)
    assert graph.size == (n, n)
    assert torch.equal(graph.edge_index, edges)


def test_a_block():
    graph = go.Graph.from_dgl(Dgl({("_N", "_E", "_N"): EDGES}, {"_N": 70}, {"_N": 20}))
    assert graph.size == SIZE and torch.equal(graph.edge_index, EDGES)


@pytest.mark.law(10)
def test_one_relation_of_several():
    relations = {
        ("user", "likes", "item"): EDGES,
        ("item", "of", "user"): EDGES.flip(0).int(),
    }
    nodes = {"user": 70, "item": 20}
    g = Dgl(relations, nodes, nodes)
    for etype in ("of", ("item", "of", "user")):
        graph = go.Graph.from_dgl(g, etype)
        assert graph.size == (20, 70)
        assert torch.equal(graph.edge_index, EDGES.flip(0))
    with pytest.raises(go.GraphError, match=r"2 edge types, name one: .*likes.*of"):
        go.Graph.from_dgl(g)
    with pytest.raises(go.GraphError, match=r"must be in \[0, 5\), the number of"):
        go.Graph.from_dgl(Dgl(relations, {"user": 5, "item": 20}, nodes), "likes")
