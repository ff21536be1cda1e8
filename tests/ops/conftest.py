import pytest
from graph_cases import GRAPHS


@pytest.fixture(params=GRAPHS, ids=lambda name: name.replace(" ", "-"))
def edges_and_size(request):
    return GRAPHS[request.param]
