/* torch_saved.c: the two packed objects.
 *
 * Both are C heap types without garbage collection: they hold detached tensors or a
 * block, never the argument of pack where that has a grad_fn, so they cannot be part of
 * a cycle that they would have to break. The dealloc of a Saved is the only end-of-life
 * signal there is.
 */
#include <Python.h>

#include <string.h>

#include "torch_hooks.h"

PyTypeObject *gnn_saved_type, *gnn_skip_type;

/* ----------------------------------------------------------------------------- Skip */

static PyObject *zero; // the version of a tensor that was never changed in place

PyObject *gnn_skip_new(PyObject *tensor) {
    // A parameter is a leaf and stays one. Anything else may become part of a graph that
    // leads back here, and is held by a detached tensor.
    PyObject *held =
        gnn_is_exact_parameter(tensor) ? Py_NewRef(tensor) : gnn_detach(tensor);
    if (!held) {
        return NULL;
    }
    PyObject *version = gnn_version_object(held);
    if (!version) {
        PyErr_Clear(); // inference tensors have none
    } else if (version == zero && gnn_is_plain(held)) {
        Py_DECREF(version);
        return held; // the tensor says it all: most were never changed in place
    }
    gnn_skip_object *skipped = PyObject_New(gnn_skip_object, gnn_skip_type);
    if (!skipped) {
        Py_DECREF(held), Py_XDECREF(version);
        return NULL;
    }
    skipped->tensor = held;
    skipped->version = version;
    return (PyObject *)skipped;
}

/* The tensor, unless its version is no longer the expected one. New reference. */
static PyObject *unchanged(PyObject *tensor, PyObject *expected) {
    PyObject *now = gnn_version_object(tensor);
    if (!now) {
        return NULL;
    }
    bool same = now == expected || // small ints are shared
                PyObject_RichCompareBool(now, expected, Py_EQ) == 1;
    int64_t version = same ? 0 : PyLong_AsLongLong(now);
    Py_DECREF(now);
    if (!same) {
        gnn_raise_changed(tensor, version, PyLong_AsLongLong(expected));
        return NULL;
    }
    return Py_NewRef(tensor);
}

PyObject *gnn_skip_unpack(PyObject *packed) {
    if (Py_TYPE(packed) != gnn_skip_type) {
        return unchanged(packed, zero);
    }
    gnn_skip_object *skipped = (gnn_skip_object *)packed;
    return skipped->version ? unchanged(skipped->tensor, skipped->version)
                            : Py_NewRef(skipped->tensor);
}

static void skip_dealloc(PyObject *self) {
    gnn_skip_object *skipped = (gnn_skip_object *)self;
    PyTypeObject *type = Py_TYPE(self);
    PyObject *tensor = skipped->tensor;
    Py_XDECREF(skipped->version);
    PyObject_Free(self);
    Py_DECREF(type);
    Py_DECREF(tensor); // last: it may run anything
}

/* ---------------------------------------------------------------------------- Saved */

gnn_saved *gnn_saved_new(gnn_engine_object *engine, PyObject *tensor,
                         const gnn_tensor_view *view) {
    PyObject *dtype = gnn_dtype_of(tensor);
    int64_t offset = dtype ? gnn_storage_offset(tensor) : -1;
    if (offset < 0) {
        Py_XDECREF(dtype);
        return NULL;
    }
    gnn_saved *saved = PyObject_NewVar(gnn_saved, gnn_saved_type, 2 * view->ndim);
    if (!saved) {
        Py_DECREF(dtype);
        return NULL;
    }
    size_t row = (size_t)view->ndim * sizeof(int64_t);
    saved->engine = (gnn_engine_object *)Py_NewRef((PyObject *)engine);
    saved->use = (gnn_use){0};
    saved->dtype = dtype;
    saved->itemsize = view->itemsize;
    saved->byte_offset = offset * view->itemsize;
    saved->primary = false;
    saved->reload = -1;
    saved->ndim = view->ndim;
    if (row > 0) {
        memcpy(saved->shape_strides, view->shape, row);
        memcpy(saved->shape_strides + view->ndim, view->strides, row);
    }
    return saved;
}

static void saved_dealloc(PyObject *self) {
    gnn_saved *saved = (gnn_saved *)self;
    PyTypeObject *type = Py_TYPE(self);
    gnn_engine_object *engine = saved->engine;
    PyObject *owner = NULL;
    if (saved->use.block) {
        if (gnn_block_note(saved->use.block) == saved) {
            gnn_block_set_note(saved->use.block, NULL);
        }
        if (!gnn_engine_is_ours(engine)) {
            gnn_engine_abandon(engine->engine);
        }
        owner = gnn_engine_release(engine->engine, &saved->use);
    }
    Py_XDECREF(saved->dtype);
    PyObject_Free(self);
    Py_DECREF(type);
    Py_XDECREF(owner); // last: it may run anything
    Py_XDECREF((PyObject *)engine);
}

/* ---------------------------------------------------------------------------- types */

static PyType_Slot skip_slots[] = {
    {Py_tp_dealloc, GNN_SLOT(skip_dealloc)},
    {Py_tp_doc, "A saved tensor that stays where it is, with its version."},
    {0, NULL},
};
static PyType_Slot saved_slots[] = {
    {Py_tp_dealloc, GNN_SLOT(saved_dealloc)},
    {Py_tp_doc, "A saved tensor that the offload engine may move."},
    {0, NULL},
};
static PyType_Spec skip_spec = {
    .name = "gnnoffload._C.Skip",
    .basicsize = sizeof(gnn_skip_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = skip_slots,
};
static PyType_Spec saved_spec = {
    .name = "gnnoffload._C.Saved",
    .basicsize = sizeof(gnn_saved),
    .itemsize = sizeof(int64_t),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = saved_slots,
};

int gnn_saved_init(PyObject *module) {
    if (!zero && !(zero = PyLong_FromLong(0))) {
        return -1;
    }
    gnn_skip_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &skip_spec, NULL);
    gnn_saved_type =
        (PyTypeObject *)PyType_FromModuleAndSpec(module, &saved_spec, NULL);
    return gnn_skip_type && gnn_saved_type &&
                   PyModule_AddObjectRef(module, "Skip", (PyObject *)gnn_skip_type) ==
                       0 &&
                   PyModule_AddObjectRef(module, "Saved", (PyObject *)gnn_saved_type) ==
                       0
               ? 0
               : -1;
}
