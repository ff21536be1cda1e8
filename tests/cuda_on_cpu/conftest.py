import pytest
from cuda_executor import Library, build

SOURCE = "tests/cuda_on_cpu/{}_kernels.cu"


@pytest.fixture(scope="session")
def libraries():
    kinds = ("right", "wrong")
    return {kind: Library(build(kind, [SOURCE.format(kind)])) for kind in kinds}


@pytest.fixture(params=["assembly", pytest.param("ucontext", marks=pytest.mark.slow)])
def right(request, libraries):
    """The library of right kernels, with each way to switch between GPU threads."""
    library = libraries["right"]
    if request.param == "ucontext":
        flags = ["-DEXEC_UCONTEXT"]
        library = Library(build("right", [SOURCE.format("right")], flags=flags))
    yield library
    library.reset()


@pytest.fixture
def wrong(libraries):
    yield libraries["wrong"]
    libraries["wrong"].reset()
