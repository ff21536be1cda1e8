/* module.c: the Python module gnnoffload._C.
 *
 * It imports without torch and without a driver. `bind()`, called once torch is in the
 * process, fills the function table, gives the core torch's thread pool and defines the
 * dispatcher ops.
 */
#include <Python.h>

#include "gnn.h"
#include "torch/module_link.h"
#include "torch/torch_abi.h"
#include "torch/torch_op.h"

int gnn_hooks_init(PyObject *module); // torch_engine.c

static bool bound;

static void parallel_for(int64_t n, int64_t grain, gnn_range_body body, void *context) {
    torch_abi.torch_parallel_for(0, n, grain, body, context);
}

PyDoc_STRVAR(bind_doc,
             "bind(path=None)\n\n"
             "Connect to the libtorch_cpu.so of this process (`path` is where\n"
             "to find it if its SONAME does not). Later calls do nothing.\n\n"
             "Raises ImportError naming the library or the symbol missing.");
static PyObject *bind(PyObject *self, PyObject *args) {
    const char *path = NULL, *missing = NULL;
    (void)self;
    if (!PyArg_ParseTuple(args, "|z:bind", &path)) {
        return NULL;
    }
    if (bound) { /* a second definition of an op would fail */
        Py_RETURN_NONE;
    }
    if (!torch_abi_load(path, &missing)) {
        return PyErr_Format(PyExc_ImportError,
                            "gnnoffload: %s not found in this process; it needs "
                            "`import torch` first, torch 2.10 or newer",
                            missing);
    }
    if (!torch_ops_define(torch_ops_graph) || !torch_ops_define(torch_ops_spmm) ||
        !torch_ops_define(torch_ops_gine) || !torch_ops_define(torch_ops_gated) ||
        !torch_ops_define(torch_ops_heads) || !torch_ops_define(torch_ops_attention) ||
        !torch_ops_define(torch_ops_reduce)) {
        PyErr_SetString(
            PyExc_ImportError,
            "gnnoffload: torch refused the definition of an op; was another "
            "copy of gnnoffload._C loaded before?");
        return NULL;
    }
    gnn_set_parallel_for(parallel_for);
    bound = true;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(last_failure_doc,
             "last_failure() -> (exception name, message)\n\n"
             "What the C core last failed with on this thread. A boxed op can raise a\n"
             "RuntimeError only; Python turns it into the named exception with this.");
static PyObject *last_failure(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    const char *exception = gnn_status_exception(gnn_last_status());
    return Py_BuildValue("(zs)", exception, gnn_message());
}

/* {name: found} of the rows that are required, or not. */
static PyObject *slots(bool want_required) {
    PyObject *found_by_name = PyDict_New();
    const char *name;
    bool found, required;
    for (size_t i = 0; found_by_name && torch_abi_slot(i, &name, &found, &required);
         i++) {
        PyObject *value = found ? Py_True : Py_False;
        if (required == want_required &&
            PyDict_SetItemString(found_by_name, name, value) < 0) {
            Py_CLEAR(found_by_name);
        }
    }
    return found_by_name;
}

PyDoc_STRVAR(build_facts_doc, "build_facts() -> {'compiler', 'flags', 'cuda'}");
static PyObject *build_facts(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    gnn_build facts = gnn_build_facts();
    return Py_BuildValue("{s:s,s:s,s:s}", "compiler", facts.compiler, "flags",
                         facts.flags, "cuda", facts.cuda);
}

PyDoc_STRVAR(info_doc, "info() -> dict\n\n"
                       "bound, isa, abi_version (None before bind), build_version,\n"
                       "required and optional: {entry point: found}.");
static PyObject *info(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    PyObject *version =
        bound ? PyLong_FromUnsignedLongLong(torch_abi.aoti_torch_abi_version())
              : Py_NewRef(Py_None);
    return Py_BuildValue("{s:N,s:s,s:N,s:K,s:N,s:N}", "bound", PyBool_FromLong(bound),
                         "isa", gnn_isa_text(), "abi_version", version, "build_version",
                         (unsigned long long)TORCH_BUILD_VERSION, "required",
                         slots(true), "optional", slots(false));
}

static PyMethodDef methods[] = {
    {"bind", bind, METH_VARARGS, bind_doc},
    {"last_failure", last_failure, METH_NOARGS, last_failure_doc},
    {"build_facts", build_facts, METH_NOARGS, build_facts_doc},
    {"info", info, METH_NOARGS, info_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_C", "C core of gnnoffload.", -1, methods, 0, 0, 0, 0,
};

PyMODINIT_FUNC PyInit__C(void) {
    PyObject *module = PyModule_Create(&definition);
    if (module && (gnn_hooks_init(module) < 0 || module_link_init(module) < 0)) {
        Py_CLEAR(module);
    }
    return module;
}
