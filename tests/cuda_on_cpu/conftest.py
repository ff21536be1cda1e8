import pytest
from cuda_executor import Library, build

SOURCES = {
    "right": [f"tests/cuda_on_cpu/{name}_kernels.cu" for name in ("right", "golden")],
    "wrong": ["tests/cuda_on_cpu/wrong_kernels.cu"],
}


@pytest.fixture(scope="session")
def libraries():
    return {kind: Library(build(kind, sources)) for kind, sources in SOURCES.items()}


@pytest.fixture(params=["assembly", pytest.param("ucontext", marks=pytest.mark.slow)])
def right(request, libraries):
    """The library of right kernels, with each way to switch between GPU threads."""
    library = libraries["right"]
    if request.param == "ucontext":
        flags = ["-DEXEC_UCONTEXT"]
        library = Library(build("right", SOURCES["right"], flags=flags))
    yield library
    library.reset()


@pytest.fixture
def wrong(libraries):
    yield libraries["wrong"]
    libraries["wrong"].reset()
