import pytest
from cuda_executor import Library, build


@pytest.fixture(scope="session")
def libraries():
    kinds = ("right", "wrong")
    source = "tests/cuda_on_cpu/{}_kernels.cu"
    return {kind: Library(build(kind, [source.format(kind)])) for kind in kinds}


@pytest.fixture
def right(libraries):
    yield libraries["right"]
    libraries["right"].reset()


@pytest.fixture
def wrong(libraries):
    yield libraries["wrong"]
    libraries["wrong"].reset()
