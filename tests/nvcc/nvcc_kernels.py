"""What nvcc and ptxas make of csrc/cuda: registers per kernel, PTX, a library to load.

python tests/nvcc/nvcc_kernels.py          compiles and prints the table
python tests/nvcc/nvcc_kernels.py --write  and keeps it in registers.txt, for review
"""

import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TABLE = HERE / "registers.txt"
ARCHS = (75, 80, 86, 89, 90, 100, 120)
HOST = "-fPIC,-fno-exceptions,-fno-threadsafe-statics"
FLAGS = ["-O3", "-std=c++17", "-Icsrc", "-Xcompiler", HOST]
# Warnings of the host compiler, of nvcc and of ptxas are errors: a spill is one.
STRICT = [
    *["-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra,-Werror"],
    *["-Xptxas", "-v,-Werror,--warn-on-spills,--warn-on-local-memory-usage"],
]


def nvcc(*arguments):
    """What nvcc says, on either stream. CalledProcessError carries it too."""
    done = subprocess.run(
        ["nvcc", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"nvcc {arguments[-1]} failed:\n{done.stdout}")
    return done.stdout


def has_nvcc():
    return shutil.which("nvcc") is not None


@cache
def nvcc_version():
    return re.search(r"V(\d+\.\d+\.\d+)", nvcc("--version"))[1]


def sources():
    return [path.relative_to(ROOT) for path in sorted(ROOT.glob("csrc/cuda/*.cu"))]


def usage(source, archs=ARCHS):
    """{(kernel, arch): (registers, shared bytes)} of one file, compiled strictly."""
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
    said = nvcc(*FLAGS, *STRICT, *targets, "-c", "-o", "/dev/null", source)
    return parse_usage(said)


def parse_usage(said):
    found = {}
    for part in said.split("Compiling entry function '")[1:]:
        name, arch = re.match(r"(\w+)' for 'sm_(\d+)", part).groups()
        registers = int(re.search(r"Used (\d+) registers", part)[1])
        shared = re.search(r"(\d+) bytes smem", part)
        found[readable(name), int(arch)] = registers, int(shared[1]) if shared else 0
    return found


TYPES = {"f": "float", "d": "double", "6__half": "half", "13__nv_bfloat16": "bf16"}
MODES = {  # what the integers of a kernel's template mean, in order
    "gine_items": [("sum", "jvp", "vjp")],
    "gated": [("sum", "vjp")],
    "edge_softmax": [("forward", "vjp")],
    "aggregate_numbers": [("", "int8", "int16", "", "int32")],
    "aggregate": [("all", "max")],
    "attention": [("gat", "gatv2", "gatv2_attr", "dot", "dot_attr")],
}


def readable(mangled):
    """spmm_items_kernel<float, wide> of a mangled name: types, modes, width."""
    arguments = r"(?:f|d|6__half|13__nv_bfloat16|S0_|Lb[01]E|Li\d+E)"
    name, listed = re.match(
        rf"_Z\d+([a-z_][a-z_0-9]*_kernel)I({arguments}+)E", mangled
    ).groups()
    modes = next((words for key, words in MODES.items() if name.startswith(key)), [])
    types, integers, width = [], [], []
    for word in re.findall(arguments, listed):
        if word.startswith("Lb"):
            width.append(("narrow", "wide")[int(word[2])])
        elif word.startswith("Li"):
            integers.append(modes[len(integers)][int(word[2:-1])])
        else:  # S0_ repeats the first type that has a long name
            repeated = next((t for t in types if t in ("half", "bf16")), None)
            types.append(repeated if word == "S0_" else TYPES[word])
    return f"{name}<{', '.join(types + integers + width)}>"


def all_usage():
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(usage, sources()))
    return {key: value for part in parts for key, value in part.items()}


def table(found, version):
    """The text of registers.txt."""
    kernels = sorted({kernel for kernel, _ in found})
    width = max(map(len, kernels))
    lines = [
        f"# registers a thread (+ shared bytes a block), nvcc {version}; made by",
        "# python tests/nvcc/nvcc_kernels.py --write",
        " ".join([f"{'sm':{width}}", *(f"{arch:>4}" for arch in ARCHS)]),
    ]
    for kernel in kernels:
        cells = [found[kernel, arch] for arch in ARCHS]
        texts = [f"{r}+{s}" if s else str(r) for r, s in cells]
        lines.append(" ".join([f"{kernel:{width}}", *(f"{t:>4}" for t in texts)]))
    return "\n".join(lines) + "\n"


def reviewed():
    """What registers.txt says: (nvcc, {(kernel, arch): (registers, shared bytes)})."""
    lines = TABLE.read_text().splitlines()
    version = re.search(r"nvcc (\S+);", lines[0])[1]
    archs = [int(arch) for arch in lines[2].split()[1:]]
    found = {}
    for line in lines[3:]:
        words = line.split()
        kernel, cells = " ".join(words[: -len(archs)]), words[-len(archs) :]
        for arch, cell in zip(archs, cells, strict=True):
            registers, _, shared = cell.partition("+")
            found[kernel, arch] = int(registers), int(shared or 0)
    return version, found


def ptx_of(source, arch=80):
    """{kernel: its PTX instructions, without predicates}"""
    said = nvcc(*FLAGS, f"-arch=compute_{arch}", "-ptx", "-o", "/dev/stdout", source)
    found = {}
    for part in said.split(".entry ")[1:]:
        body = [line.strip() for line in part.partition("{")[2].splitlines()]
        found[readable(part)] = [re.sub(r"^@!?%p\d+\s+", "", line) for line in body]
    return found


def product_library(folder):
    """A shared library of a launcher, as nvcc makes it for the product."""
    target = Path(folder, "launchers.so")
    listed = ["csrc/cuda/spmm_cuda.cu", "csrc/core/status.c"]
    nvcc(*FLAGS, "-arch=sm_90", "-shared", "-cudart", "static", "-o", target, *listed)
    return target


if __name__ == "__main__":
    text = table(all_usage(), nvcc_version())
    print(text, end="")
    if "--write" in sys.argv:
        TABLE.write_text(text)
