/* module_link.c: what `doctor` asks of the spill file, the build and CUDA, and the
 * faults that tests put into the file link. Failures are RuntimeErrors that
 * errors.named() names. */
#include "torch/module_link.h"

#include <string.h>

#include "gnn.h"
#include "offload/copy_matrix.h"
#include "offload/cuda_api.h"
#include "offload/file_faults.h"
#include "offload/link.h"
#include "offload/spill_file.h"

typedef struct probe {
    const char *file_system;
    bool direct;
    double rate_out, rate_in;
} probe;

static gnn_status probe_directory(const char *directory, int64_t bytes,
                                  bool allow_memory_backed, probe *result) {
    gnn_link_file_options options = {
        .directory = directory,
        .limit = INT64_MAX,
        .allow_memory_backed = allow_memory_backed,
        .direct = true,
    };
    gnn_link *link;
    gnn_status status = GNN_OK;
    GNN_TRY(gnn_link_file_open(&options, &link));
    gnn_link_file_info(link, &result->file_system, &result->direct);
    if (bytes > 0) {
        status = link->ops->measure(link, bytes, &result->rate_out, &result->rate_in);
    }
    link->ops->close(link);
    return status;
}

PyDoc_STRVAR(spill_probe_doc,
             "spill_probe(directory, bytes=0, allow_memory_backed=False) -> dict\n\n"
             "file_system, direct, and with `bytes` the rates rate_out and rate_in\n"
             "(written, read) in bytes per second. About 2 seconds at most.");
static PyObject *spill_probe(PyObject *self, PyObject *args, PyObject *keywords) {
    static char *names[] = {"directory", "bytes", "allow_memory_backed", NULL};
    const char *directory;
    long long bytes = 0;
    int allow = 0;
    probe result = {0};
    gnn_status status;
    (void)self;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "s|Lp:spill_probe", names,
                                     &directory, &bytes, &allow)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS;
    status = probe_directory(directory, bytes, allow != 0, &result);
    Py_END_ALLOW_THREADS;
    if (status != GNN_OK) {
        PyErr_SetString(PyExc_RuntimeError, gnn_message());
        return NULL;
    }
    return Py_BuildValue("{s:s,s:N,s:d,s:d}", "file_system", result.file_system,
                         "direct", PyBool_FromLong(result.direct), "rate_out",
                         result.rate_out, "rate_in", result.rate_in);
}

static PyObject *file_system(PyObject *self, PyObject *path) {
    const char *name, *text = PyUnicode_AsUTF8AndSize(path, NULL);
    bool memory_backed;
    (void)self;
    if (!text) {
        return NULL;
    }
    if (gnn_file_system_of(text, &name, &memory_backed) != GNN_OK) {
        PyErr_SetString(PyExc_RuntimeError, gnn_message());
        return NULL;
    }
    return Py_BuildValue("(sN)", name, PyBool_FromLong(memory_backed));
}

PyDoc_STRVAR(
    fault_doc,
    "inject_file_fault(call=None, error=0, after=0, times=-1)\n\n"
    "For tests: after `after` good calls of openat, pread, pwrite, fallocate,\n"
    "ftruncate or sync_file_range in the file link, `times` calls (negative:\n"
    "all) fail with errno `error`; 0: move a part only. None disarms.");
static PyObject *inject_file_fault(PyObject *self, PyObject *args, PyObject *keywords) {
    static char *names[] = {"call", "error", "after", "times", NULL};
    const char *call = NULL;
    int error = 0;
    long long after = 0, times = -1;
    (void)self;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "|ziLL:inject_file_fault", names,
                                     &call, &error, &after, &times)) {
        return NULL;
    }
    gnn_file_fault fault = {.error = error, .after = after, .times = times};
    fault.call = call;
    if (gnn_file_fault_set(call ? &fault : NULL) != GNN_OK) {
        PyErr_SetString(PyExc_ValueError, gnn_message());
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *file_fault_hits(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    return PyLong_FromLongLong(gnn_file_fault_hits());
}

PyDoc_STRVAR(
    cuda_absence_doc,
    "cuda_absence(driver_version, devices) -> str\n\n"
    "Why this build cannot use CUDA where the driver serves that version (13000\n"
    "is CUDA 13.0, 0: no driver) and shows so many devices; '' when it can.");
static PyObject *cuda_absence(PyObject *self, PyObject *args) {
    int driver, devices, runtime = gnn_cuda_built_version();
    char text[200];
    (void)self;
    if (!PyArg_ParseTuple(args, "ii:cuda_absence", &driver, &devices)) {
        return NULL;
    }
    gnn_cuda_absence_text(gnn_cuda_judge(runtime, driver, devices), runtime, driver,
                          text, sizeof text);
    return PyUnicode_FromString(text);
}

static PyObject *build_facts(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    gnn_build facts = gnn_build_facts();
    return Py_BuildValue("{s:s,s:s,s:s}", "compiler", facts.compiler, "flags",
                         facts.flags, "cuda", facts.cuda);
}

PyDoc_STRVAR(copy_rates_doc,
             "copy_rates(kind, sizes, device=0, seconds=0.02, api=0) -> list\n\n"
             "(out, in, both) in bytes per second for each of the ascending sizes;\n"
             "0.0 where there was no memory. kind: pinned, pageable, managed, system;\n"
             "api: the address of a table of CUDA calls, 0: the CUDA runtime's.");
static PyObject *copy_rates(PyObject *self, PyObject *args, PyObject *keywords) {
    static char *names[] = {"kind", "sizes", "device", "seconds", "api", NULL};
    static const char *const kinds[] = {
#define KIND_TEXT(name, text) text,
        GNN_HOST_KIND_MAP(KIND_TEXT)
#undef KIND_TEXT
    };
    enum { MOST = 32 };
    const char *kind;
    int device = 0, which = 0;
    double seconds = 0.02, rates[MOST][GNN_COPY_WAYS];
    unsigned long long address = 0;
    int64_t sizes[MOST];
    PyObject *listed;
    (void)self;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "sO!|idK:copy_rates", names, &kind,
                                     &PyList_Type, &listed, &device, &seconds,
                                     &address)) {
        return NULL;
    }
    while (which < GNN_HOST_KIND_COUNT && strcmp(kind, kinds[which]) != 0) {
        which++;
    }
    Py_ssize_t n = PyList_Size(listed);
    if (which == GNN_HOST_KIND_COUNT || n < 1 || n > MOST) {
        return PyErr_Format(PyExc_ValueError,
                            "copy_rates: no kind %s, or not 1 to %d sizes", kind, MOST);
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        sizes[i] = PyLong_AsLongLong(PyList_GetItem(listed, i));
    }
    if (PyErr_Occurred()) {
        return NULL;
    }
    gnn_status status;
    const gnn_cuda_api *api =
        address ? (const gnn_cuda_api *)(uintptr_t)address : gnn_cuda_api_runtime();
    Py_BEGIN_ALLOW_THREADS;
    status = gnn_copy_rates(api, device, (gnn_host_kind)which, sizes, (int)n, seconds,
                            rates[0]);
    Py_END_ALLOW_THREADS;
    if (status != GNN_OK) {
        PyErr_SetString(PyExc_RuntimeError, gnn_message());
        return NULL;
    }
    PyObject *list = PyList_New(n);
    for (Py_ssize_t i = 0; list && i < n; i++) {
        PyObject *row = Py_BuildValue("(ddd)", rates[i][GNN_COPY_OUT],
                                      rates[i][GNN_COPY_IN], rates[i][GNN_COPY_BOTH]);
        if (!row || PyList_SetItem(list, i, row) < 0) {
            Py_CLEAR(list);
        }
    }
    return list;
}

/* For measurements: a table that writes calls down goes in front of this one. */
static PyObject *cuda_api_address(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    return PyLong_FromUnsignedLongLong((uintptr_t)gnn_cuda_api_runtime());
}

/* For tests: a table of CUDA calls from another library puts its texts where ours are
 * found. */
static PyObject *fail_address(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    return PyLong_FromUnsignedLongLong((uintptr_t)gnn_fail);
}

static PyMethodDef functions[] = {
    {"copy_rates", (PyCFunction)(void (*)(void))copy_rates,
     METH_VARARGS | METH_KEYWORDS, copy_rates_doc},
    {"cuda_api_address", cuda_api_address, METH_NOARGS,
     "Address of the CUDA runtime's table of calls."},
    {"fail_address", fail_address, METH_NOARGS, "Tests: address of gnn_fail."},
    {"spill_probe", (PyCFunction)(void (*)(void))spill_probe,
     METH_VARARGS | METH_KEYWORDS, spill_probe_doc},
    {"file_system", file_system, METH_O, "(name, memory-backed) of where a path is."},
    {"inject_file_fault", (PyCFunction)(void (*)(void))inject_file_fault,
     METH_VARARGS | METH_KEYWORDS, fault_doc},
    {"file_fault_hits", file_fault_hits, METH_NOARGS, "Calls the fault now armed hit."},
    {"cuda_absence", cuda_absence, METH_VARARGS, cuda_absence_doc},
    {"build_facts", build_facts, METH_NOARGS, "compiler, flags, cuda ('' without)."},
    {NULL, NULL, 0, NULL},
};

int module_link_init(PyObject *module) {
    return PyModule_AddFunctions(module, functions);
}
