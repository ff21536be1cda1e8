import pytest
from cuda_executor import Library, build


@pytest.fixture(scope="session")
def wrong_library():
    return Library(build("wrong", ["tests/cuda_on_cpu/wrong_kernels.cu"]))


@pytest.fixture
def wrong(wrong_library):
    yield wrong_library
    wrong_library.reset()
