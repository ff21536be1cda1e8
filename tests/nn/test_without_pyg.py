"""Without torch_geometric: everything imports but the layers, which say what to do."""

import subprocess
import sys

CODE = """
import sys
sys.modules["torch_geometric"] = None  # import torch_geometric raises ImportError
import gnnoffload, gnnoffload.nn
assert "GCNConv" in dir(gnnoffload.nn)
gnnoffload.nn.InteractionNetwork
gnnoffload.nn.GraphTransformerConv
for use in (
    lambda: gnnoffload.nn.GCNConv,
    lambda: gnnoffload.convert(__import__("torch").nn.Linear(1, 1)),
):
    try:
        use()
    except ImportError as error:
        print(error)
try:
    gnnoffload.nn.NoSuchLayer
except AttributeError as error:
    print(error)
"""


def test_the_layers_say_how_to_install_pyg():
    run = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        "gnnoffload.nn.GCNConv needs torch_geometric: pip install gnnoffload[pyg]",
        "gnnoffload.convert needs torch_geometric: pip install gnnoffload[pyg]",
        "module 'gnnoffload.nn' has no attribute 'NoSuchLayer'",
    ]
