/* torch_hooks.c: pack, unpack, and carrying out the engine's actions.
 *
 * The GIL is the engine's lock. It is released around waits only, in slices,
 * so that Ctrl-C raises; every other Python call may set off a dealloc that calls into
 * the engine, which is why blocks of pending actions are pinned there.
 */
#include <Python.h>

#include "torch_hooks.h"

#define WAIT_SLICE 0.05 // seconds without the GIL until signals are looked at
#define CHECKPOINT_PACKS                                                               \
    256 // saves of a pass in which torch.utils.checkpoint is looked for

int gnn_current_stream(gnn_engine_object *self, gnn_stream *stream) {
    *stream = 0;
    if (!self->stream) {
        return 0;
    }
    PyObject *number = PyObject_CallObject(self->stream, self->stream_args);
    *stream = number ? PyLong_AsUnsignedLongLong(number) : 0;
    Py_XDECREF(number);
    return PyErr_Occurred() ? -1 : 0;
}

/* ------------------------------------------------------------- carrying out actions */

/* Waits without the GIL. -1: a signal handler raised; the copy goes on. */
int gnn_wait_copy(gnn_engine_object *self, const gnn_action *action) {
    gnn_link *link = gnn_engine_link(self->engine);
    gnn_status status = GNN_OK;
    bool done = !link;
    int interrupted = 0;
    double begin = gnn_now();
    while (!done && status == GNN_OK && !interrupted) {
        Py_BEGIN_ALLOW_THREADS status =
            link->ops->wait_for(link, action->ticket, WAIT_SLICE, &done);
        Py_END_ALLOW_THREADS interrupted = !done && PyErr_CheckSignals() < 0;
    }
    gnn_engine_waited(self->engine, action->block, done || status != GNN_OK, status,
                      gnn_now() - begin);
    return interrupted ? -1 : 0;
}

static int test_owner(gnn_engine_object *self, const gnn_action *action) {
    int64_t version = gnn_version(action->owner);
    int alone = version >= 0 ? gnn_is_alone(action->storage) : -1;
    gnn_verdict verdict = alone == 1 ? GNN_FREE : GNN_STILL_OWNED;
    if (version >= 0 && version != action->version) {
        verdict = GNN_CHANGED;
    }
    gnn_engine_tested(self->engine, action->block, verdict, version);
    return alone < 0 ? -1 : 0;
}

/* Would a new tensor of this size and stride hold just the bytes wanted, at the same
 * alignment? */
static bool fits_exactly(const gnn_saved *saved, const gnn_action *action) {
    int64_t last = 0;
    for (int32_t i = 0; i < saved->ndim; i++) {
        last += (saved->shape_strides[i] - 1) * saved->shape_strides[saved->ndim + i];
    }
    return (last + 1) * saved->itemsize == action->bytes &&
           action->address % GNN_ALIGNMENT == 0;
}

/* Brings near memory for a block that is out. -1 with an exception. A block that was
 * saved once, as one tensor, comes back as that tensor: unpack then needs no view. */
static int allocate(gnn_engine_object *self, const gnn_action *action,
                    gnn_stream stream) {
    char *address = NULL;
    int64_t held = action->bytes, version = 0;
    uintptr_t storage = 0;
    gnn_saved *saved = gnn_block_note(action->block);
    saved = saved && fits_exactly(saved, action) ? saved : NULL;
    Py_XINCREF((PyObject *)saved); // making a tensor may end its last other reference
    PyObject *owner = saved
                          ? gnn_make_empty(self->tensor_device, saved->dtype,
                                           saved->ndim, saved->shape_strides, &address)
                          : gnn_make_bytes(self->tensor_device, action->bytes,
                                           action->address, &address, &held);
    if (owner && (gnn_storage(owner, &storage, NULL) < 0 ||
                  (version = gnn_version(owner)) < 0)) {
        Py_CLEAR(owner);
    }
    bool taken = false;
    gnn_status status = gnn_engine_allocated(self->engine, action, storage, address,
                                             held, version, stream, owner, &taken);
    if (taken && saved) {
        saved->reload = gnn_block_reloads(saved->use.block);
    }
    bool failed = !owner;
    if (!taken) {
        Py_XDECREF(owner);
    }
    if (status != GNN_OK) {
        gnn_raise(status);
        failed = true;
    }
    if (failed && action->ahead) {
        PyErr_Clear(); // unpack itself will say so
    }
    Py_XDECREF((PyObject *)saved);
    return failed ? -1 : 0;
}

/* Gives up an owner. The caching allocator gives its memory to the stream it came from,
 * which need not be one that the engine's orders are about: so it hears of those. */
static void drop(gnn_engine_object *self, PyObject *owner) {
    const gnn_stream *streams;
    int32_t n = gnn_engine_streams(self->engine, &streams);
    for (int32_t s = 0; s < n && self->record_stream; s++) {
        PyObject *number = PyLong_FromUnsignedLongLong(streams[s]);
        PyObject *none = number ? PyObject_CallFunctionObjArgs(self->record_stream,
                                                               owner, number, NULL)
                                : NULL;
        if (!none) {
            PyErr_WriteUnraisable(self->record_stream);
        }
        Py_XDECREF(number), Py_XDECREF(none);
    }
    Py_DECREF(owner);
}

int gnn_settle(gnn_engine_object *self, gnn_settle_mode mode) {
    for (;;) {
        gnn_action action;
        gnn_status status = gnn_engine_next(self->engine, &action);
        if (status != GNN_OK) {
            if (mode == GNN_PACKING && self->raise_on_full) {
                gnn_engine_take_warning(self->engine); // the exception says it
                gnn_raise(status);
                return -1;
            }
            continue; // kept, counted, and said once below
        }
        if (action.kind == GNN_ACT_NONE) {
            break;
        }
        if (action.kind == GNN_ACT_DROP) {
            drop(self, action.owner);
        } else if (action.kind == GNN_ACT_WAIT && mode == GNN_GIVING_UP) {
            gnn_engine_waited(self->engine, action.block, false, GNN_OK, 0);
            break;
        } else if ((action.kind == GNN_ACT_WAIT ? gnn_wait_copy
                                                : test_owner)(self, &action) < 0) {
            return -1;
        }
    }
    const char *warning = gnn_engine_take_warning(self->engine);
    return warning ? PyErr_WarnFormat(
                         PyExc_RuntimeWarning, 1,
                         "%s; such tensors stay in memory and training goes on "
                         "(on_full=\"raise\" stops instead)",
                         warning)
                   : 0;
}

static void prefetch(gnn_engine_object *self, const gnn_use *use, gnn_stream stream) {
    for (;;) {
        gnn_action action;
        gnn_engine_ahead(self->engine, use, &action);
        if (action.kind == GNN_ACT_NONE || allocate(self, &action, stream) < 0) {
            return;
        }
    }
}

/* ----------------------------------------------------------------------------- pack */

/* Did torch.utils.checkpoint save this, as an input of a region whose inner saves we
 * never see? It does so from its own code, or through Function.apply called there. */
static bool is_checkpoint_input(void) {
    PyObject *globals = PyEval_GetGlobals(); // borrowed
    if (globals == gnn_checkpoint_globals) {
        return true;
    }
    if (globals != gnn_function_globals) {
        return false;
    }
    PyObject *frame = (PyObject *)PyEval_GetFrame(); // borrowed
    PyObject *back = frame ? PyObject_GetAttrString(frame, "f_back") : NULL;
    PyObject *callers = back ? PyObject_GetAttrString(back, "f_globals") : NULL;
    bool yes = callers == gnn_checkpoint_globals;
    Py_XDECREF(back), Py_XDECREF(callers);
    PyErr_Clear();
    return yes;
}

static PyObject *skip(gnn_pass_stats *stats, gnn_skip reason, int64_t bytes,
                      PyObject *tensor) {
    stats->skipped[reason]++;
    stats->skipped_bytes[reason] += bytes;
    return gnn_skip_new(tensor);
}

static void count_save(gnn_pass_stats *stats, int64_t bytes) {
    stats->saves++;
    stats->saved_bytes += bytes;
    if (bytes > 0) {
        int size_class = 63 - __builtin_clzll((unsigned long long)bytes);
        size_class = size_class < GNN_SIZE_CLASSES ? size_class : GNN_SIZE_CLASSES - 1;
        stats->class_saves[size_class]++;
        stats->class_bytes[size_class] += bytes;
    }
    if (stats->saves <= CHECKPOINT_PACKS && is_checkpoint_input()) {
        stats->checkpoint_saves++;
        stats->checkpoint_bytes += bytes;
    }
}

/* The block that holds this version of the storage, or NULL. *alias: the storage is
 * held, but by a tensor with another version counter. -1 with an exception. */
static int find_block(gnn_engine_object *self, uintptr_t storage, int64_t version,
                      gnn_block **block, bool *alias) {
    *block = gnn_engine_find(self->engine, storage);
    *alias = false;
    if (!*block) {
        return 0;
    }
    PyObject *owner = Py_NewRef((PyObject *)gnn_block_owner(*block));
    int64_t now = gnn_version(owner); // of the counter that the block watches
    *block = gnn_engine_find(self->engine, storage); // the call may have ended it
    int64_t expected = *block ? gnn_block_version(*block) : 0;
    if (*block &&
        now != expected) { // overwritten since: unpack of those saves will raise
        Py_XDECREF((PyObject *)gnn_engine_poison(self->engine, *block, now));
        *block = gnn_engine_find(self->engine, storage);
        *alias = *block != NULL; // still on its way out
    } else if (*block && version != expected) {
        *alias = true;
    }
    Py_DECREF(owner);
    return now < 0 ? -1 : 0;
}

/* A block for a storage that has none. *skip_it: it is a parameter's cast. */
static gnn_block *new_block(gnn_pass_object *self, PyObject *tensor,
                            const gnn_saved *saved, const gnn_tensor_view *view,
                            uintptr_t storage, int64_t bytes, int64_t version,
                            gnn_stream stream, bool *skip_it) {
    int cast = view->itemsize < 4 ? gnn_is_parameter_cast(tensor) : 0;
    *skip_it = cast == 1;
    PyObject *source = cast == 0 ? gnn_detach(tensor) : NULL;
    if (!source) {
        return NULL;
    }
    gnn_block *block = NULL;
    gnn_status status = gnn_engine_add(self->engine->engine, self->pass, storage,
                                       view->data - saved->byte_offset, bytes, version,
                                       stream, source, &block);
    if (status != GNN_OK) {
        gnn_raise(status);
        Py_DECREF(source);
    }
    return block;
}

static PyObject *pack_block(gnn_pass_object *self, PyObject *tensor,
                            const gnn_tensor_view *view, uintptr_t storage,
                            int64_t bytes) {
    gnn_engine_object *engine = self->engine;
    gnn_pass_stats *stats = gnn_pass_counters(self->pass);
    int64_t version = gnn_version(tensor);
    if (version < 0) {
        PyErr_Clear(); // an inference tensor: autograd refuses it itself
        return skip(stats, GNN_SKIP_LAYOUT, view->hi - view->lo, tensor);
    }
    gnn_stream stream;
    if (gnn_current_stream(engine, &stream) < 0) {
        return NULL;
    }
    if (gnn_engine_is_captured(engine->engine, stream)) {
        return skip(stats, GNN_SKIP_CAPTURE, view->hi - view->lo, tensor);
    }
    gnn_saved *saved = gnn_saved_new(engine, tensor, view);
    gnn_block *block = NULL;
    bool alias = false, cast = false;
    if (!saved || find_block(engine, storage, version, &block, &alias) < 0) {
        Py_XDECREF((PyObject *)saved);
        return NULL;
    }
    if (!block) {
        block = new_block(self, tensor, saved, view, storage, bytes, version, stream,
                          &cast);
        saved->primary = block != NULL;
    }
    if (alias || cast || !block) {
        Py_DECREF((PyObject *)saved);
        return alias || cast ? skip(stats, alias ? GNN_SKIP_ALIAS : GNN_SKIP_CAST,
                                    view->hi - view->lo, tensor)
                             : NULL;
    }
    // Offsets count from the storage as first saved, of which a reload holds a part.
    saved->byte_offset = view->data - gnn_block_base(block);
    gnn_status status = gnn_engine_save(engine->engine, self->pass, block,
                                        saved->byte_offset + view->lo,
                                        saved->byte_offset + view->hi, &saved->use);
    if (status != GNN_OK) {
        gnn_raise(status);
    }
    if (status == GNN_OK && saved->primary) {
        gnn_block_set_note(block, saved);
    }
    if (status != GNN_OK || gnn_settle(engine, GNN_PACKING) < 0) {
        Py_DECREF((PyObject *)saved);
        return NULL;
    }
    return (PyObject *)saved;
}

PyObject *gnn_pack(PyObject *object, PyObject *tensor) {
    gnn_pass_object *self = (gnn_pass_object *)object;
    if (gnn_engine_require_ours(self->engine) < 0) {
        return NULL;
    }
    if (!self->pass) { // a thread that outlived the context
        return gnn_skip_new(tensor);
    }
    gnn_pass_stats *stats = gnn_pass_counters(self->pass);
    gnn_tensor_view view;
    if (!gnn_is_plain(tensor)) {
        stats->saves++;
        return skip(stats, GNN_SKIP_TYPE, 0, tensor);
    }
    if (gnn_tensor_read(tensor, &view) < 0) {
        stats->saves++;
        return skip(stats, GNN_SKIP_LAYOUT, 0, tensor);
    }
    int64_t extent = view.hi - view.lo, bytes = 0;
    uintptr_t storage;
    count_save(stats, extent);
    if (view.device != self->engine->device) {
        return skip(stats, GNN_SKIP_DEVICE, extent, tensor);
    }
    // A small tensor counts by its storage where it is a view; else it is all of it.
    // (Asking every tensor for its storage would make a Python object for each.)
    if (extent < self->engine->min_bytes && !gnn_is_view(tensor)) {
        return skip(stats, GNN_SKIP_SMALL, extent, tensor);
    }
    if (gnn_storage(tensor, &storage, &bytes) < 0) {
        PyErr_Clear();
        return skip(stats, GNN_SKIP_LAYOUT, extent, tensor);
    }
    PyObject *packed = NULL;
    if (bytes < self->engine->min_bytes || extent == 0) {
        packed = skip(stats, GNN_SKIP_SMALL, extent, tensor);
    } else if (gnn_is_parameter(tensor)) {
        packed = skip(stats, GNN_SKIP_PARAMETER, extent, tensor);
    } else {
        int bits = gnn_has_bits(tensor);
        packed = bits == 0  ? pack_block(self, tensor, &view, storage, bytes)
                 : bits > 0 ? skip(stats, GNN_SKIP_BITS, extent, tensor)
                            : NULL;
    }
    return packed;
}

/* Outside any engine, for go.keep(): everything stays, guarded. */
PyObject *gnn_keep_pack(PyObject *module, PyObject *tensor) {
    (void)module;
    return gnn_skip_new(tensor);
}

/* --------------------------------------------------------------------------- unpack */

/* Carries out fetch's actions until the block is near. -1 with an exception. */
static int bring_near(gnn_saved *saved, gnn_stream stream) {
    gnn_engine_object *self = saved->engine;
    bool ahead = false, shed = false;
    for (;;) {
        gnn_action action;
        gnn_status status =
            gnn_engine_fetch(self->engine, &saved->use, stream, &action);
        if (status == GNN_ESTATE && gnn_block_changed(saved->use.block) >= 0) {
            gnn_raise_changed(NULL, gnn_block_changed(saved->use.block),
                              gnn_block_version(saved->use.block));
            return -1;
        }
        if (status != GNN_OK) {
            gnn_raise(status);
            return -1;
        }
        if (action.kind == GNN_ACT_NONE) {
            return 0;
        }
        if (action.kind == GNN_ACT_DROP) {
            drop(self, action.owner);
        } else if (action.kind == GNN_ACT_WAIT) {
            if (!ahead) {
                ahead = true;
                // Its copies run while this one is waited for.
                prefetch(self, &saved->use, stream);
            }
            if (gnn_wait_copy(self, &action) < 0) {
                return -1;
            }
        } else if (allocate(self, &action, stream) < 0) {
            if (shed || PyErr_ExceptionMatches(PyExc_OSError)) {
                return -1;
            }
            PyErr_Clear(); // no memory: give back what is clean, then once more
            shed = true;
            int64_t budget = gnn_engine_budget(self->engine);
            gnn_engine_set_budget(self->engine, 0);
            int settled = gnn_settle(self, GNN_SETTLING);
            gnn_engine_set_budget(self->engine, budget);
            if (settled < 0) {
                return -1;
            }
        }
    }
}

/* The owner of a block that is near, unless it was changed in place. New reference. */
static PyObject *checked_owner(gnn_saved *saved) {
    gnn_block *block = saved->use.block;
    PyObject *owner = Py_NewRef((PyObject *)gnn_block_owner(block));
    int64_t now = gnn_version(owner), expected = gnn_block_version(block);
    if (now != expected) {
        if (now >= 0) {
            gnn_raise_changed(owner, now, expected);
            Py_XDECREF(
                (PyObject *)gnn_engine_poison(saved->engine->engine, block, now));
        }
        Py_CLEAR(owner);
    }
    return owner;
}

static PyObject *see(gnn_saved *saved, PyObject *owner) {
    gnn_block *block = saved->use.block;
    if (saved->primary && gnn_block_reloads(block) == 0) {
        return Py_NewRef(owner);
    }
    if (saved->reload == gnn_block_reloads(block)) {
        return gnn_detach(owner); // not the owner itself: the storage counts as in use
    }
    gnn_tensor_view view;
    int64_t offset = gnn_storage_offset(owner), itemsize;
    if (offset < 0 || gnn_tensor_read(owner, &view) < 0) {
        return NULL;
    }
    itemsize = view.itemsize;
    char *begin = view.data - offset * itemsize; // of the owner's storage
    return gnn_make_view(owner, saved->engine->tensor_device, saved->dtype,
                         saved->itemsize,
                         gnn_block_base(block) + saved->byte_offset - begin,
                         saved->ndim, saved->shape_strides);
}

/* A reload that is used on another stream than its own: the allocator must know before
 * it is freed. Sources are used where plain training would use them. */
static int note_other_stream(gnn_saved *saved, PyObject *owner, gnn_stream stream) {
    const gnn_block *block = saved->use.block;
    gnn_engine_object *engine = saved->engine;
    if (!engine->record_stream || gnn_block_reloads(block) == 0 ||
        gnn_block_is_home(block, stream)) {
        return 0;
    }
    gnn_pass_counters(saved->use.pass)->other_stream++;
    PyObject *number = PyLong_FromUnsignedLongLong(stream);
    PyObject *none = number ? PyObject_CallFunctionObjArgs(engine->record_stream, owner,
                                                           number, NULL)
                            : NULL;
    Py_XDECREF(number), Py_XDECREF(none);
    return none ? 0 : -1;
}

/* While a graph is captured nothing may be asked, marked or copied. */
static PyObject *unpack_captured(gnn_saved *saved) {
    PyObject *owner = NULL, *tensor = NULL;
    if (!gnn_block_is_settled(saved->use.block)) {
        gnn_raise(gnn_fail(GNN_ESTATE,
                           "offload: a saved tensor is on its way or away, and cannot "
                           "be fetched while a CUDA graph is captured"));
    } else if ((owner = checked_owner(saved)) != NULL) {
        tensor = see(saved, owner);
    }
    Py_XDECREF(owner);
    return tensor;
}

static PyObject *unpack_block(gnn_saved *saved) {
    gnn_engine_object *engine = saved->engine;
    gnn_stream stream;
    if (gnn_engine_require_ours(engine) < 0 ||
        gnn_current_stream(engine, &stream) < 0) {
        return NULL;
    }
    PyObject *owner = NULL, *tensor = NULL;
    Py_INCREF((PyObject *)saved);
    if (gnn_engine_is_captured(engine->engine, stream)) {
        tensor = unpack_captured(saved);
        Py_DECREF((PyObject *)saved);
        return tensor;
    }
    gnn_engine_touch(engine->engine, &saved->use, stream);
    if (bring_near(saved, stream) == 0 && (owner = checked_owner(saved)) != NULL &&
        note_other_stream(saved, owner, stream) == 0) {
        tensor = see(saved, owner);
    }
    Py_XDECREF(owner); // the tensor keeps the storage: nothing below can take it away
    if (tensor) {
        prefetch(engine, &saved->use, stream);
        if (gnn_settle(engine, GNN_SETTLING) < 0) {
            Py_CLEAR(tensor);
        }
    }
    Py_DECREF((PyObject *)saved);
    return tensor;
}

PyObject *gnn_unpack(PyObject *module, PyObject *packed) {
    (void)module;
    if (gnn_is_plain(packed) || Py_TYPE(packed) == gnn_skip_type) {
        return gnn_skip_unpack(packed);
    }
    if (Py_TYPE(packed) == gnn_saved_type) {
        return unpack_block((gnn_saved *)packed);
    }
    PyErr_SetString(PyExc_TypeError, "unpack: not packed by gnnoffload");
    return NULL;
}
