"""Our attention as a graph attention backend of anemoi-models.

    import gnnoffload.integrations.anemoi as backend
    backend.register()      # then graph_attention_backend: "gnnoffload" in a config
    backend.use(model)      # or: change the blocks of a model that exists

A block of anemoi (`GraphTransformerBaseBlock`) keeps the name of its backend and a
callable `conv`, which for every backend but "triton" it calls as
`conv(query, key, value, edges, edge_index, size)`. `register` adds our name to those
its `set_attention_function` knows; the environment variable
ANEMOI_INFERENCE_GRAPHTRANSFORMER_ATTENTION_BACKEND=gnnoffload then works too.
Read from anemoi-models 0.19.
"""

import functools

from gnnoffload.nn.graph_transformer_conv import GraphTransformerConv

BACKEND = "gnnoffload"


def register():
    """Makes "gnnoffload" a backend that anemoi's graph transformer blocks accept.

    Raises
    ------
    ImportError without anemoi-models, or if its blocks are not as expected. Calling it
    twice is calling it once.
    """
    block = _block_module()
    base = block.GraphTransformerBaseBlock
    if getattr(base.set_attention_function, "of_gnnoffload", False):
        return
    theirs = base.set_attention_function

    @functools.wraps(theirs)
    def set_attention_function(self):
        forced = getattr(block, "ATTENTION_BACKEND", "")
        if (forced or self.graph_attention_backend) == BACKEND:
            use(self)
        else:
            theirs(self)

    set_attention_function.of_gnnoffload = True
    base.set_attention_function = set_attention_function


def use(model):
    """Gives every graph transformer block of `model` (or `model` itself) our attention.

    Weights and state_dict stay as they are: neither conv has any.

    Returns
    -------
    the number of blocks
    """
    base = _block_module().GraphTransformerBaseBlock
    blocks = [module for module in model.modules() if isinstance(module, base)]
    for module in blocks:
        dropout = getattr(getattr(module, "conv", None), "dropout", 0.0)
        module.__dict__.pop("conv", None)  # a plain function, of the triton backend
        module.conv = GraphTransformerConv(module.out_channels_conv, dropout)
        module.graph_attention_backend = BACKEND
    return len(blocks)


def _block_module():
    try:
        from anemoi.models.layers import block
    except ImportError as error:
        raise ImportError(
            "gnnoffload.integrations.anemoi needs anemoi-models: "
            "pip install anemoi-models"
        ) from error
    base = getattr(block, "GraphTransformerBaseBlock", None)
    if not hasattr(base, "set_attention_function"):
        raise ImportError(
            "gnnoffload.integrations.anemoi: this anemoi-models has no "
            "GraphTransformerBaseBlock.set_attention_function; written for 0.19"
        )
    return block
