"""Build gnnoffload._C: one abi3 extension in plain C11 that needs no torch to build.

Switches (environment): GNNOFFLOAD_DEBUG=1 (-O0 -g, asserts), GNNOFFLOAD_SANITIZE=1
(ASan and UBSan), GNNOFFLOAD_WERROR=1 (warnings are errors, as in CI).
"""

import os
from pathlib import Path

from setuptools import Extension, setup

ROOMS = ("core", "cpu", "offload", "torch")
C_FLAGS = [
    "-std=c11",
    "-O3",
    "-fexceptions",
    "-Wall",
    "-Wextra",
    "-Wpedantic",
    "-Wshadow",
    "-Wconversion",
    "-Wstrict-prototypes",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
]


def flags():
    """Compiler and linker flags for the switches in the environment."""
    compile_flags, link_flags = list(C_FLAGS), []
    if os.environ.get("GNNOFFLOAD_DEBUG") == "1":
        compile_flags += ["-O0", "-g", "-UNDEBUG"]
    if os.environ.get("GNNOFFLOAD_SANITIZE") == "1":
        compile_flags += ["-fsanitize=address,undefined", "-g"]
        link_flags += ["-fsanitize=address,undefined"]
    if os.environ.get("GNNOFFLOAD_WERROR") == "1":
        compile_flags += ["-Werror"]
    return compile_flags, link_flags


def extension():
    compile_flags, link_flags = flags()
    root = Path(__file__).parent
    sources = [
        str(path.relative_to(root))
        for room in ROOMS
        for path in sorted((root / "csrc" / room).glob("*.c"))
    ]
    headers = [str(path.relative_to(root)) for path in sorted(root.glob("csrc/**/*.h"))]
    return Extension(
        "gnnoffload._C",
        sources,
        depends=headers,
        include_dirs=["csrc"],
        define_macros=[("Py_LIMITED_API", "0x030B0000"), ("_GNU_SOURCE", None)],
        extra_compile_args=compile_flags,
        extra_link_args=[*link_flags, "-lpthread", "-ldl"],
        py_limited_api=True,
    )


setup(
    ext_modules=[extension()],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
