/* module.c: the Python module gnnoffload._C. Imports without torch; each room of
 * csrc/torch adds its own functions and types in its *_init. */
#include <Python.h>

#include "gnn.h"

static PyObject *isa(PyObject *self, PyObject *args) {
    (void)self, (void)args;
    return PyUnicode_FromString(gnn_status_text(GNN_OK));
}

static PyMethodDef methods[] = {
    {"_ok", isa, METH_NOARGS, "Text of the ok status."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_C", "C core of gnnoffload.", -1, methods, 0, 0, 0, 0,
};

PyMODINIT_FUNC PyInit__C(void) {
    return PyModule_Create(&definition);
}
