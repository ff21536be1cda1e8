"""Build gnnoffload._C: one abi3 extension in plain C11 (CUDA C where nvcc is found).

Nothing of torch is needed: libtorch's functions are looked up when the module is bound.

Switches (environment)
    GNNOFFLOAD_CUDA=0|1       never | always, or fail; unset: where nvcc is found
    TORCH_CUDA_ARCH_LIST      "8.0;9.0+PTX": the GPUs to compile for; unset: in place
                              those two, for a wheel every one from 7.5 to 12.0
    GNNOFFLOAD_DEBUG=1        -O0 -g, assertions on
    GNNOFFLOAD_SANITIZE=1     AddressSanitizer and UndefinedBehaviorSanitizer
    GNNOFFLOAD_WERROR=1       warnings are errors, as in CI
    V=1                       show the commands
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext as _build_ext

ROOMS = ("core", "cpu", "cuda", "offload", "torch")
C_FLAGS = [
    "-std=c11",
    "-O3",
    "-g0",  # Python asks for -g, which doubles the time to compile
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
# -fexceptions may ask for libgcc's personality; a wheel needs libc alone.
LINK_FLAGS = ["-static-libgcc", "-Wl,--exclude-libs,ALL"]
# Exceptions and guarded statics would pull in libstdc++.
CUDA_HOST_FLAGS = "-fPIC,-fno-exceptions,-fno-threadsafe-statics,-fvisibility=hidden"
CUDA_ARCHS = {
    "development": "8.0;9.0+PTX",
    "release": "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX",
}


def switch(name):
    """True for "1", False for "0" and unset; anything else is refused."""
    value = os.environ.get(name, "0")
    if value not in ("0", "1", ""):
        raise SystemExit(f"gnnoffload: {name} must be 0 or 1, got {value!r}")
    return value == "1"


def refuse_unsupported():
    """One sentence instead of a compiler's thousand. Parsed by old Pythons too."""
    python = platform.python_version()
    if not sys.platform.startswith("linux"):
        raise SystemExit(f"gnnoffload runs on Linux only, this is {sys.platform}")
    if sys.version_info < (3, 11):  # noqa: UP036
        raise SystemExit(f"gnnoffload needs Python 3.11 or newer, this is {python}")
    if sys.implementation.name != "cpython":
        raise SystemExit(f"gnnoffload needs CPython, this is {sys.implementation.name}")
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        raise SystemExit(
            f"gnnoffload does not support free-threaded Python yet, this is {python}"
        )
    if sys.maxsize < 2**32:
        raise SystemExit("gnnoffload needs a 64-bit Python, this one has 32 bits")


class Cuda:
    """The toolkit of the nvcc on PATH; `root` is None where there is none."""

    def __init__(self, wanted):
        self.nvcc = shutil.which("nvcc") if wanted else None
        self.root = self.version = None
        if self.nvcc:
            self.ask_nvcc()

    def ask_nvcc(self):
        # nvcc may be a wrapper elsewhere, so its own path says nothing about the root.
        with tempfile.NamedTemporaryFile(suffix=".cu") as probe:
            command = [self.nvcc, "--dryrun", "-c", probe.name]
            said = subprocess.run(command, capture_output=True, text=True)
        top = re.search(r"^#\$ TOP=(.+)$", said.stderr, re.M)
        release = subprocess.run(
            [self.nvcc, "--version"], capture_output=True, text=True
        )
        version = re.search(r"release (\d+\.\d+)", release.stdout)
        if top and version:
            self.root, self.version = Path(top.group(1)).resolve(), version.group(1)

    def library_dir(self):
        for place in (
            "lib64",
            "lib",
            "targets/x86_64-linux/lib",
            "targets/sbsa-linux/lib",
        ):
            if (self.root / place / "libcudart_static.a").exists():
                return str(self.root / place)
        raise SystemExit(f"gnnoffload: no libcudart_static.a under {self.root}")

    def arch_flags(self):
        """-gencode flags: TORCH_CUDA_ARCH_LIST, else those of ours this nvcc knows."""
        asked = os.environ.get("TORCH_CUDA_ARCH_LIST")
        purpose = "release" if "bdist_wheel" in sys.argv else "development"
        listed = subprocess.run(
            [self.nvcc, "--list-gpu-arch"], capture_output=True, text=True
        ).stdout.split()
        flags = []
        for arch in re.split(r"[;,\s]+", (asked or CUDA_ARCHS[purpose]).strip(" ;,")):
            match = re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", arch)
            if not match:
                raise SystemExit(
                    "gnnoffload: TORCH_CUDA_ARCH_LIST must look like 8.0;9.0+PTX, "
                    f"got {arch!r}"
                )
            number = match.group(1) + match.group(2)
            if not asked and f"compute_{number}" not in listed:
                continue
            flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
            if match.group(3):
                flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
        return flags


def quoted(text):
    """A C string literal for -D."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def flags_from_switches():
    compile_flags, link_flags = list(C_FLAGS), list(LINK_FLAGS)
    if switch("GNNOFFLOAD_DEBUG"):
        compile_flags += ["-O0", "-g", "-UNDEBUG"]
    if switch("GNNOFFLOAD_SANITIZE"):
        sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        compile_flags += [*sanitizers, "-O1", "-g", "-fno-omit-frame-pointer"]
        link_flags += sanitizers
    if switch("GNNOFFLOAD_WERROR"):
        compile_flags += ["-Werror"]
    return compile_flags, link_flags


def extension():
    """The one extension, and the CUDA toolkit it is built with."""
    root = Path(__file__).parent
    cu = sorted(root.glob("csrc/cuda/*.cu"))
    cuda = Cuda(wanted=cu and os.environ.get("GNNOFFLOAD_CUDA") != "0")
    if switch("GNNOFFLOAD_CUDA") and not cuda.root:
        raise SystemExit(
            "gnnoffload: GNNOFFLOAD_CUDA=1, but "
            + ("no working nvcc is on PATH" if cu else "csrc/cuda holds no .cu file")
        )
    sources = [path for room in ROOMS for path in sorted(root.glob(f"csrc/{room}/*.c"))]
    compile_flags, link_flags = flags_from_switches()
    libraries = ["pthread", "dl"]
    # What `doctor` says of how this was built; read by csrc/core/build.c.
    macros = [
        ("Py_LIMITED_API", "0x030B0000"),
        ("_GNU_SOURCE", None),
        ("GNN_BUILD_FLAGS", quoted(" ".join(compile_flags))),
        ("GNN_BUILD_CUDA", quoted(cuda.version or "")),
    ]
    include_dirs, library_dirs = ["csrc"], []
    if cuda.root:
        sources = [*(path for path in sources if path.name != "nocuda.c"), *cu]
        libraries = ["cudart_static", "rt", *libraries]
        library_dirs = [cuda.library_dir()]
        include_dirs.append(str(cuda.root / "include"))
        macros.append(("GNN_WITH_CUDA", None))
    ext = Extension(
        "gnnoffload._C",
        [str(path.relative_to(root)) for path in sources],
        depends=[
            str(path.relative_to(root)) for path in sorted(root.glob("csrc/**/*.h"))
        ],
        include_dirs=include_dirs,
        library_dirs=library_dirs,
        libraries=libraries,
        define_macros=macros,
        extra_compile_args=compile_flags,
        extra_link_args=link_flags,
        py_limited_api=True,
    )
    return ext, cuda


class build_ext(_build_ext):
    """Compiles objects in parallel, and only those whose command or files changed."""

    def finalize_options(self):
        super().finalize_options()
        # one place for wheels, editable and in-place
        self.build_temp = "build/objects"
        if switch("GNNOFFLOAD_SANITIZE"):
            self.build_temp = "build/objects-asan"  # not to compile all at each turn

    def build_extension(self, ext):
        self.include_dirs = [
            p for p in self.include_dirs if Path(p, "Python.h").exists()
        ]
        if not self.include_dirs:
            raise SystemExit(
                "gnnoffload: Python.h is missing: sudo apt install python3-dev "
                "(or the -dev package of your Python)"
            )
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(
                pool.map(lambda source: self.compile(ext, source), ext.sources)
            )
        target = self.get_ext_fullpath(ext.name)
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        link = [
            *self.compiler.linker_so,
            *objects,
            *("-L" + path for path in ext.library_dirs),
            *("-l" + name for name in ext.libraries),
            *ext.extra_link_args,
        ]
        self.run_command_line("LD", target, [*link, "-o", target])

    def compile(self, ext, source):
        """The object of one source, compiled when it is not fresh."""
        target = Path(self.build_temp, source).with_suffix(".o")
        target.parent.mkdir(parents=True, exist_ok=True)
        command = self.command(ext, source)
        command += ["-MMD", "-MF", f"{target}.d", "-c", source, "-o", str(target)]
        record, line = Path(f"{target}.cmd"), "\0".join(command)
        if not fresh(target, record, line):
            record.unlink(missing_ok=True)
            self.run_command_line(
                "CU" if source.endswith(".cu") else "CC", source, command
            )
            record.write_text(line)
        return str(target)

    def command(self, ext, source):
        defines = [
            f"-D{k}" if v is None else f"-D{k}={v}" for k, v in ext.define_macros
        ]
        if source.endswith(".cu"):
            host = ["-O3", "-std=c++17", "-Xcompiler", CUDA_HOST_FLAGS]
            return [cuda.nvcc, *host, *cuda.arch_flags(), "-Icsrc", *defines]
        includes = ["-I" + path for path in (*ext.include_dirs, *self.include_dirs)]
        lighter = []
        if switch("GNNOFFLOAD_SANITIZE") and source.endswith("_cpu.c"):
            # the row templates: these take minutes to compile, as in tests/c/ctest.mk
            lighter = ["-g0", "-fno-sanitize=null,object-size,alignment"]
        return [
            *self.compiler.compiler_so,
            *ext.extra_compile_args,
            *lighter,
            *includes,
            *defines,
        ]

    def run_command_line(self, what, name, command):
        print(" ".join(command) if os.environ.get("V") == "1" else f"  {what}   {name}")
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        sys.stdout.flush()
        sys.stdout.buffer.write(done.stdout)
        sys.stdout.flush()
        if done.returncode:
            raise SystemExit(f"gnnoffload: {what} {name}: {command[0]} failed")


def fresh(target, record, command):
    """True when target was made by this command after every file it was made from."""
    try:
        if record.read_text() != command:
            return False
        rule = Path(f"{target}.d").read_text().replace("\\\n", " ").partition(": ")[2]
        files = [
            path.replace("\\ ", " ") for path in re.split(r"(?<!\\)\s+", rule.strip())
        ]
        return max(os.path.getmtime(path) for path in files) < target.stat().st_mtime
    except OSError:
        return False


refuse_unsupported()
ext, cuda = extension()
setup(
    license="Apache-2.0",  # here: its form in pyproject.toml changed in setuptools 77
    ext_modules=[ext],
    cmdclass={"build_ext": build_ext},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
