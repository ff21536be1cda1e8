/* torch_engine.c: the Python types Engine and Pass.
 *
 * An Engine owns a gnn_engine and its link. A Pass is one entry of a context; its
 * method `pack` and the module's function `unpack` are the saved-tensor hooks. Counters
 * leave as dicts, by the X-macros of engine.h. Python's side is gnnoffload/_offload.py.
 */
#include <Python.h>

#include <pthread.h>
#include <string.h>

#include "offload/cuda_api.h"
#include "offload/spill_file.h"
#include "torch_hooks.h"

PyObject *gnn_checkpoint_globals, *gnn_function_globals;
static PyTypeObject *engine_type, *pass_type;
static unsigned forks; // of this process

static void count_fork(void) {
    forks++;
}

bool gnn_engine_is_ours(const gnn_engine_object *engine) {
    return engine->forks == forks;
}

int gnn_engine_require_ours(const gnn_engine_object *engine) {
    if (!gnn_engine_is_ours(engine)) {
        gnn_raise(gnn_fail(GNN_ESTATE,
                           "offload: this engine belongs to the parent process; "
                           "make a new go.offload(...) in the child"));
        return -1;
    }
    return 0;
}

/* ------------------------------------------------------------------------- counters */

static int set_int(PyObject *dict, const char *name, int64_t value) {
    PyObject *number = PyLong_FromLongLong(value);
    int status = number ? PyDict_SetItemString(dict, name, number) : -1;
    Py_XDECREF(number);
    return status;
}

static int set_float(PyObject *dict, const char *name, double value) {
    PyObject *number = PyFloat_FromDouble(value);
    int status = number ? PyDict_SetItemString(dict, name, number) : -1;
    Py_XDECREF(number);
    return status;
}

/* Steals value. */
static int set_object(PyObject *dict, const char *name, PyObject *value) {
    int status = value ? PyDict_SetItemString(dict, name, value) : -1;
    Py_XDECREF(value);
    return status;
}

static PyObject *skips_to_dict(const int64_t *values) {
    static const char *const names[] = {
#define SKIP_TEXT(name, text) text,
        GNN_SKIP_MAP(SKIP_TEXT)
#undef SKIP_TEXT
    };
    PyObject *dict = PyDict_New();
    for (int i = 0; dict && i < GNN_SKIP_COUNT; i++) {
        if (values[i] && set_int(dict, names[i], values[i]) < 0) {
            Py_CLEAR(dict);
        }
    }
    return dict;
}

static PyObject *classes_to_list(const gnn_pass_stats *stats) {
    PyObject *list = PyList_New(0);
    for (int i = 0; list && i < GNN_SIZE_CLASSES; i++) {
        if (stats->class_saves[i]) {
            PyObject *row = Py_BuildValue("(LLL)", (long long)1 << i,
                                          (long long)stats->class_saves[i],
                                          (long long)stats->class_bytes[i]);
            if (!row || PyList_Append(list, row) < 0) {
                Py_CLEAR(list);
            }
            Py_XDECREF(row);
        }
    }
    return list;
}

static PyObject *stats_to_dict(const gnn_pass_stats *stats) {
    PyObject *dict = PyDict_New();
    int failed = !dict;
#define SET_COUNTER(name) failed = failed || set_int(dict, #name, stats->name) < 0;
    GNN_COUNTER_MAP(SET_COUNTER)
    SET_COUNTER(budget)
    SET_COUNTER(out_window)
    SET_COUNTER(in_window)
    SET_COUNTER(number)
#undef SET_COUNTER
#define SET_SECONDS(name) failed = failed || set_float(dict, #name, stats->name) < 0;
    SET_SECONDS(stall_out)
    SET_SECONDS(stall_in)
    SET_SECONDS(busy_out)
    SET_SECONDS(busy_in)
    SET_SECONDS(forward_seconds)
    SET_SECONDS(backward_seconds)
#undef SET_SECONDS
    failed =
        failed || set_object(dict, "skipped", skips_to_dict(stats->skipped)) < 0 ||
        set_object(dict, "skipped_bytes", skips_to_dict(stats->skipped_bytes)) < 0 ||
        set_object(dict, "size_classes", classes_to_list(stats)) < 0;
    if (failed) {
        Py_CLEAR(dict);
    }
    return dict;
}

/* ----------------------------------------------------------------------------- Pass */

/* failed: an exception left the context. */
static PyObject *pass_end(PyObject *object, PyObject *failed) {
    gnn_pass_object *self = (gnn_pass_object *)object;
    gnn_settle_mode mode = failed == Py_True ? GNN_GIVING_UP : GNN_SETTLING;
    gnn_pass *pass = self->pass;
    self->pass = NULL;
    int settled = 0;
    if (pass && gnn_engine_is_ours(self->engine)) {
        gnn_engine *engine = self->engine->engine;
        gnn_stream stream;
        settled = gnn_current_stream(self->engine, &stream);
        gnn_engine_refresh(engine); // owners have changed since the last save
        if (settled == 0 && !gnn_engine_is_captured(engine, stream)) {
            settled = gnn_settle(self->engine, mode);
        }
        gnn_pass_end(engine, pass, stream);
    }
    return settled < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *pass_counters(PyObject *object, PyObject *unused) {
    gnn_pass_object *self = (gnn_pass_object *)object;
    (void)unused;
    return self->pass ? stats_to_dict(gnn_pass_counters(self->pass))
                      : Py_NewRef(Py_None);
}

static void pass_dealloc(PyObject *object) {
    gnn_pass_object *self = (gnn_pass_object *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->pass && gnn_engine_is_ours(self->engine)) {
        gnn_stream stream;
        if (gnn_current_stream(self->engine, &stream) < 0) {
            PyErr_Clear();
        }
        gnn_pass_end(self->engine->engine, self->pass, stream);
    }
    Py_XDECREF((PyObject *)self->engine);
    PyObject_Free(object);
    Py_DECREF(type);
}

static PyMethodDef pass_methods[] = {
    {"pack", gnn_pack, METH_O, "Saved-tensor hook."},
    {"end", pass_end, METH_O, "The context was left, by an exception if True."},
    {"counters", pass_counters, METH_NOARGS, "Counters so far; None once left."},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot pass_slots[] = {
    {Py_tp_dealloc, GNN_SLOT(pass_dealloc)},
    {Py_tp_methods, pass_methods},
    {Py_tp_doc, "One entry of an offload context."},
    {0, NULL},
};
static PyType_Spec pass_spec = {
    .name = "gnnoffload._C.Pass",
    .basicsize = sizeof(gnn_pass_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = pass_slots,
};

/* --------------------------------------------------------------------------- Engine */

static PyObject *engine_begin(PyObject *object, PyObject *unused) {
    gnn_engine_object *self = (gnn_engine_object *)object;
    (void)unused;
    gnn_pass *pass;
    gnn_stream stream;
    if (gnn_engine_require_ours(self) < 0 || gnn_current_stream(self, &stream) < 0) {
        return NULL;
    }
    if (!gnn_engine_link(self->engine)) {
        gnn_raise(gnn_fail(GNN_ESTATE, "offload: the engine was shut down"));
        return NULL;
    }
    gnn_pass_object *entry = PyObject_New(gnn_pass_object, pass_type);
    if (!entry) {
        return NULL;
    }
    entry->engine = (gnn_engine_object *)Py_NewRef(object);
    entry->pass = NULL;
    gnn_status status = gnn_pass_begin(self->engine, stream, &pass);
    if (status != GNN_OK) {
        gnn_raise(status);
        Py_CLEAR(entry);
    } else {
        entry->pass = pass;
    }
    return (PyObject *)entry;
}

/* Waits without the GIL until no copy is under way. */
static PyObject *engine_drain(PyObject *object, PyObject *unused) {
    gnn_engine_object *self = (gnn_engine_object *)object;
    (void)unused;
    if (!gnn_engine_is_ours(self)) {
        gnn_engine_abandon(self->engine);
    }
    for (gnn_action action;;) {
        gnn_engine_drain(self->engine, &action);
        if (action.kind == GNN_ACT_NONE) {
            return gnn_settle(self, GNN_SETTLING) < 0 ? NULL : Py_NewRef(Py_None);
        }
        if (gnn_wait_copy(self, &action) < 0) {
            return NULL;
        }
    }
}

static PyObject *engine_shutdown(PyObject *object, PyObject *unused) {
    gnn_engine_object *self = (gnn_engine_object *)object;
    PyObject *drained = engine_drain(object, unused);
    if (drained) {
        gnn_engine_shut(self->engine);
    }
    return drained;
}

/* Waits for passes that the device has not ended yet if the argument is true. */
static PyObject *engine_take_finished(PyObject *object, PyObject *flag) {
    gnn_engine_object *self = (gnn_engine_object *)object;
    int wait = PyObject_IsTrue(flag);
    PyObject *list = wait < 0 ? NULL : PyList_New(0);
    gnn_pass_stats stats;
    while (list && gnn_engine_take_finished(self->engine, wait, &stats)) {
        PyObject *dict = stats_to_dict(&stats);
        if (!dict || PyList_Append(list, dict) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(dict);
    }
    return list;
}

static PyObject *engine_state(PyObject *object, PyObject *unused) {
    gnn_engine_object *self = (gnn_engine_object *)object;
    (void)unused;
    PyObject *dict = PyDict_New();
    gnn_link *link = gnn_engine_link(self->engine);
    gnn_link_stats stats = {0};
    if (link && gnn_engine_is_ours(self)) {
        link->ops->stats(link, &stats);
    }
    gnn_engine *e = self->engine;
    if (!dict || set_int(dict, "budget", gnn_engine_budget(e)) < 0 ||
        set_int(dict, "resident", gnn_engine_bytes(e, GNN_RESIDENT)) < 0 ||
        set_int(dict, "outward", gnn_engine_bytes(e, GNN_OUTWARD)) < 0 ||
        set_int(dict, "inward", gnn_engine_bytes(e, GNN_INWARD)) < 0 ||
        set_int(dict, "owned", gnn_engine_bytes(e, GNN_OWNED)) < 0 ||
        set_int(dict, "kept", gnn_engine_bytes(e, GNN_KEPT)) < 0 ||
        set_int(dict, "blocks", gnn_engine_live_blocks(e)) < 0 ||
        set_int(dict, "passes", gnn_engine_live_passes(e)) < 0 ||
        set_int(dict, "slot_bytes", stats.slot_bytes) < 0 ||
        set_int(dict, "slot_peak", stats.slot_peak) < 0 ||
        set_int(dict, "tier_bytes", stats.tier_bytes) < 0 ||
        set_int(dict, "page_cache", stats.page_cache) < 0) {
        Py_CLEAR(dict);
    }
    return dict;
}

static PyObject *engine_captured(PyObject *object, PyObject *unused) {
    gnn_engine_object *self = (gnn_engine_object *)object;
    gnn_stream stream;
    (void)unused;
    if (gnn_current_stream(self, &stream) < 0) {
        return NULL;
    }
    return PyBool_FromLong(gnn_engine_is_captured(self->engine, stream));
}

static PyObject *engine_set_budget(PyObject *object, PyObject *number) {
    gnn_engine_object *self = (gnn_engine_object *)object;
    int64_t budget = PyLong_AsLongLong(number);
    if (PyErr_Occurred()) {
        return NULL;
    }
    gnn_engine_set_budget(self->engine, budget);
    return Py_NewRef(Py_None);
}

static PyObject *engine_measure(PyObject *object, PyObject *number) {
    gnn_engine_object *self = (gnn_engine_object *)object;
    int64_t bytes = PyLong_AsLongLong(number);
    gnn_link *link = gnn_engine_link(self->engine);
    double rate_out = 0, rate_in = 0;
    if (PyErr_Occurred() || gnn_engine_require_ours(self) < 0) {
        return NULL;
    }
    gnn_status status = GNN_OK;
    if (link) {
        Py_BEGIN_ALLOW_THREADS status =
            link->ops->measure(link, bytes, &rate_out, &rate_in);
        Py_END_ALLOW_THREADS
    }
    if (status != GNN_OK) {
        gnn_raise(status);
        return NULL;
    }
    return Py_BuildValue("(dd)", rate_out, rate_in);
}

/* For tests: copies of a RAM link start but do not end while held. */
static PyObject *engine_hold(PyObject *object, PyObject *flag) {
    gnn_link *link = gnn_engine_link(((gnn_engine_object *)object)->engine);
    int hold = PyObject_IsTrue(flag);
    if (link && hold >= 0 && strcmp(link->ops->name, "ram") == 0) {
        gnn_link_ram_hold(link, hold);
    }
    return hold < 0 ? NULL : Py_NewRef(Py_None);
}

/* For tests: the nth copy of a RAM link from now fails as a broken disk would. */
static PyObject *engine_fail(PyObject *object, PyObject *args) {
    gnn_link *link = gnn_engine_link(((gnn_engine_object *)object)->engine);
    int out;
    long long nth;
    if (!PyArg_ParseTuple(args, "pL", &out, &nth)) {
        return NULL;
    }
    if (link && strcmp(link->ops->name, "ram") == 0) {
        gnn_link_ram_fail(link, out, nth, GNN_EIO);
    }
    return Py_NewRef(Py_None);
}

static void engine_dealloc(PyObject *object) {
    gnn_engine_object *self = (gnn_engine_object *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (!gnn_engine_is_ours(self)) {
        gnn_engine_abandon(self->engine);
    }
    gnn_engine_shut(
        self->engine); // waits for copies of blocks that nobody wants any more
    for (gnn_action action;;) {
        if (gnn_engine_next(self->engine, &action) != GNN_OK ||
            action.kind != GNN_ACT_DROP) {
            break;
        }
        Py_DECREF((PyObject *)action.owner);
    }
    gnn_engine_free(self->engine);
    Py_XDECREF(self->tensor_device);
    Py_XDECREF(self->stream), Py_XDECREF(self->stream_args);
    Py_XDECREF(self->record_stream);
    PyObject_Free(object);
    Py_DECREF(type);
}

static PyMethodDef engine_methods[] = {
    {"begin", engine_begin, METH_NOARGS, "A new Pass."},
    {"drain", engine_drain, METH_NOARGS, "Wait until no copy is under way."},
    {"shutdown", engine_shutdown, METH_NOARGS, "Wait for copies, close the link."},
    {"take_finished", engine_take_finished, METH_O,
     "Counters of finished passes; True: waits for the device."},
    {"captured", engine_captured, METH_NOARGS,
     "Is a CUDA graph being captured on the current stream?"},
    {"state", engine_state, METH_NOARGS, "Bytes held now, by account."},
    {"set_budget", engine_set_budget, METH_O, "Resident bytes at most."},
    {"hold", engine_hold, METH_O, "Tests: hold the copies of a RAM link."},
    {"fail", engine_fail, METH_VARARGS, "Tests: fail(out, n), the nth copy."},
    {"measure", engine_measure, METH_O, "(bytes/s out, bytes/s in) with a probe."},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot engine_slots[] = {
    {Py_tp_dealloc, GNN_SLOT(engine_dealloc)},
    {Py_tp_methods, engine_methods},
    {Py_tp_doc, "An offload engine and its link."},
    {0, NULL},
};
static PyType_Spec engine_spec = {
    .name = "gnnoffload._C.Engine",
    .basicsize = sizeof(gnn_engine_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = engine_slots,
};

/* --------------------------------------------------------------------------- module */

static int bind_globals(const char *name, PyObject **globals) {
    PyObject *module = *globals ? NULL : PyImport_ImportModule(name);
    if (module) {
        *globals = Py_NewRef(PyModule_GetDict(module));
        Py_DECREF(module);
    }
    return *globals ? 0 : -1;
}

typedef struct engine_arguments {
    const char *store, *directory;
    long long limit, budget, out_window, in_window, min_bytes;
    int threads, direct, memory_backed, raise_on_full;
    // store "cuda"
    int device;             // as the CUDA table numbers it
    unsigned long long api; // address of a gnn_cuda_api; 0: the CUDA runtime's
    PyObject *tensor_device, *stream, *stream_args, *record_stream; // None: absent
} engine_arguments;

static int parse_arguments(PyObject *args, PyObject *keywords, engine_arguments *a) {
    static char *names[] = {
        "store",         "directory",     "limit",      "threads",       "direct",
        "memory_backed", "budget",        "out_window", "in_window",     "min_bytes",
        "raise_on_full", "device",        "api",        "tensor_device", "stream",
        "stream_args",   "record_stream", NULL};
    *a = (engine_arguments){.tensor_device = Py_None, .stream = Py_None};
    a->stream_args = a->record_stream = Py_None;
    return PyArg_ParseTupleAndKeywords(
               args, keywords, "szLippLLLLp|iKOOOO", names, &a->store, &a->directory,
               &a->limit, &a->threads, &a->direct, &a->memory_backed, &a->budget,
               &a->out_window, &a->in_window, &a->min_bytes, &a->raise_on_full,
               &a->device, &a->api, &a->tensor_device, &a->stream, &a->stream_args,
               &a->record_stream)
               ? 0
               : -1;
}

static gnn_status open_link(const engine_arguments *a, gnn_link **link) {
    gnn_link_file_options file = {
        .directory = a->directory,
        .limit = a->limit,
        .threads = a->threads,
        .allow_memory_backed = a->memory_backed,
        .direct = a->direct,
    };
    gnn_link_cuda_options cuda = {.device = a->device, .limit = a->limit};
    if (strcmp(a->store, "cuda") == 0) {
        cuda.api =
            a->api ? (const gnn_cuda_api *)(uintptr_t)a->api : gnn_cuda_api_runtime();
        return gnn_link_cuda_open(&cuda, link);
    }
    return strcmp(a->store, "ram") == 0
               ? gnn_link_ram_open(a->limit, a->threads ? a->threads : 1, link)
               : gnn_link_file_open(&file, link);
}

static PyObject *given(PyObject *argument) {
    return argument == Py_None ? NULL : Py_NewRef(argument);
}

/* The device of its tensors. CPU tensors stand for a device's where a test says so. */
static int read_device(gnn_engine_object *self, PyObject *tensor_device) {
    self->device = GNN_ON_CPU;
    if (tensor_device == Py_None) {
        PyObject *torch = PyImport_ImportModule("torch");
        self->tensor_device =
            torch ? PyObject_CallMethod(torch, "device", "s", "cpu") : NULL;
        Py_XDECREF(torch);
        return self->tensor_device ? 0 : -1;
    }
    self->tensor_device = Py_NewRef(tensor_device);
    PyObject *type = PyObject_GetAttrString(tensor_device, "type");
    PyObject *index = type ? PyObject_GetAttrString(tensor_device, "index") : NULL;
    if (index && PyUnicode_CompareWithASCIIString(type, "cuda") == 0) {
        self->device = (int)PyLong_AsLong(index);
    }
    Py_XDECREF(type), Py_XDECREF(index);
    return PyErr_Occurred() ? -1 : 0;
}

static PyObject *open_engine(PyObject *module, PyObject *args, PyObject *keywords) {
    (void)module;
    engine_arguments a;
    if (parse_arguments(args, keywords, &a) < 0 || gnn_torch_bind() < 0 ||
        bind_globals("torch.utils.checkpoint", &gnn_checkpoint_globals) < 0 ||
        bind_globals("torch.autograd.function", &gnn_function_globals) < 0) {
        return NULL;
    }
    gnn_engine_options options = {
        .budget = a.budget, .out_window = a.out_window, .in_window = a.in_window};
    gnn_status status = open_link(&a, &options.link);
    gnn_engine *engine = NULL;
    if (status == GNN_OK && (status = gnn_engine_open(&options, &engine)) != GNN_OK) {
        options.link->ops->close(options.link);
    }
    gnn_engine_object *self =
        status == GNN_OK ? PyObject_New(gnn_engine_object, engine_type) : NULL;
    if (!self) {
        if (status == GNN_OK) {
            gnn_engine_free(engine);
        } else {
            gnn_raise(status);
        }
        return NULL;
    }
    self->engine = engine;
    self->min_bytes = a.min_bytes;
    self->raise_on_full = a.raise_on_full;
    self->forks = forks;
    self->stream = given(a.stream);
    self->stream_args = given(a.stream_args);
    self->record_stream = given(a.record_stream);
    if (read_device(self, a.tensor_device) < 0) {
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static PyObject *file_system(PyObject *module, PyObject *path) {
    (void)module;
    const char *name = "unknown", *text = PyUnicode_AsUTF8AndSize(path, NULL);
    bool memory_backed = false;
    gnn_status status = text ? gnn_file_system_of(text, &name, &memory_backed) : GNN_OK;
    if (status != GNN_OK) {
        gnn_raise(status);
    }
    return text && status == GNN_OK
               ? Py_BuildValue("(sO)", name, memory_backed ? Py_True : Py_False)
               : NULL;
}

static PyMethodDef functions[] = {
    {"file_system", file_system, METH_O,
     "(name, memory-backed) of a path's file system."},
    {"open_engine", (PyCFunction)(void (*)(void))open_engine,
     METH_VARARGS | METH_KEYWORDS, "An offload engine over a new link."},
    {"unpack", gnn_unpack, METH_O,
     "Saved-tensor hook, for every packed object of ours."},
    {"keep_pack", gnn_keep_pack, METH_O,
     "Saved-tensor hook: the tensor stays, guarded."},
    {NULL, NULL, 0, NULL},
};

int gnn_hooks_init(PyObject *module) {
    pthread_atfork(NULL, NULL, count_fork);
    engine_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &engine_spec, NULL);
    pass_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &pass_spec, NULL);
    return engine_type && pass_type && gnn_saved_init(module) == 0 &&
                   PyModule_AddFunctions(module, functions) == 0
               ? 0
               : -1;
}
