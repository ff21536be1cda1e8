/* torch_hooks.h: what the files of the saved-tensor hooks share. Needs Python.h first.
 *
 *   torch_tensor.c  reads a tensor (DLPack exchange table, cached attributes), makes
 *   tensors
 *   torch_saved.c   the packed objects: Saved (a use of a block) and Skip (a tensor,
 *   guarded)
 *   torch_hooks.c   pack, unpack, and carrying out the engine's actions
 *   torch_engine.c  the Python types Engine and Pass, links, counters as dicts
 */
#ifndef GNN_TORCH_HOOKS_H
#define GNN_TORCH_HOOKS_H

#include "offload/engine.h"

#define GNN_SLOT(function) ((void *)(uintptr_t)(function)) // for a PyType_Slot
#define GNN_ALIGNMENT 64 // kernels may pick variants by the address modulo it

enum { GNN_ON_CPU = -1, GNN_ELSEWHERE = -2 }; // >= 0: the CUDA device of that number

/* ------------------------------------------------------------------- torch_tensor.c */

typedef struct gnn_tensor_view {
    char *data;
    int32_t ndim;
    const int64_t *shape, *strides; // borrowed from the tensor, in elements
    int64_t itemsize, numel;
    int64_t lo, hi; // bytes [data + lo, data + hi) are what it can reach
    int device;     // GNN_ON_CPU, a CUDA device, GNN_ELSEWHERE
} gnn_tensor_view;

/* Looks up what is needed from torch; once. -1 with an exception. */
int gnn_torch_bind(void);
/* -1 (no exception) when the tensor has no plain strided memory. */
int gnn_tensor_read(PyObject *tensor, gnn_tensor_view *view);
bool gnn_is_plain(PyObject *tensor);     // exactly torch.Tensor or Parameter
bool gnn_is_view(PyObject *tensor);      // tracked by autograd as one
bool gnn_is_parameter(PyObject *tensor); // a Parameter or a view of one
/* 1 for a parameter cast to another dtype (or a view of the cast), else 0; -1:
 * exception. */
int gnn_is_parameter_cast(PyObject *tensor);
/* 1 when conj, neg or zero bits make the memory differ from the values; -1: exception.
 * */
int gnn_has_bits(PyObject *tensor);
bool gnn_is_exact_parameter(PyObject *tensor);
PyObject *gnn_detach(PyObject *tensor);
PyObject *gnn_version_object(PyObject *tensor); // int, or NULL with an exception
int64_t gnn_version(PyObject *tensor);          // -1: exception
/* The storage's key, and its bytes unless NULL. -1: exception. */
int gnn_storage(PyObject *tensor, uintptr_t *key, int64_t *bytes);
int64_t gnn_storage_offset(PyObject *tensor); // elements; -1: exception
PyObject *gnn_dtype_of(PyObject *tensor);
/* Is an engine's one tensor (of which gnn_storage was asked) the only owner? -1:
 * exception. */
int gnn_is_alone(uintptr_t key);
/* `device` is a torch.device. A flat byte tensor with room for `bytes` at the alignment of `like`; *address is
 * where. */
PyObject *gnn_make_bytes(PyObject *device, int64_t bytes, uintptr_t like,
                         char **address, int64_t *held);
/* An empty tensor of this dtype, sizes and strides at GNN_ALIGNMENT. */
PyObject *gnn_make_empty(PyObject *device, PyObject *dtype, int32_t ndim,
                         const int64_t *shape_strides, char **address);
/* The view of `owner`'s storage with this dtype, byte offset, sizes and strides. */
PyObject *gnn_make_view(PyObject *owner, PyObject *device, PyObject *dtype,
                        int64_t itemsize, int64_t byte_offset, int32_t ndim,
                        const int64_t *shape_strides);
/* Raises torch's own sentence about an in-place change. */
void gnn_raise_changed(PyObject *tensor, int64_t version, int64_t expected);
void gnn_raise(gnn_status status); // the status's exception with gnn_message()

/* -------------------------------------------------------------------- torch_saved.c */

typedef struct gnn_engine_object gnn_engine_object;

typedef struct gnn_saved { // a use of a block, and how to see this tensor in it
    PyVarObject base;
    gnn_engine_object *engine;
    gnn_use use;
    PyObject *dtype;
    int64_t itemsize, byte_offset; // from the start of the storage as saved
    bool primary;                  // the block's source is this very view
    int32_t reload;                // the reload that is a tensor like this one, or -1
    int32_t ndim;
    int64_t shape_strides[]; // [2 * ndim]
} gnn_saved;

typedef struct gnn_skip_object { // a tensor that stays, and its version
    PyObject base;
    PyObject *tensor;
    PyObject *version; // NULL: tensors without one (made in inference mode)
} gnn_skip_object;

extern PyTypeObject *gnn_saved_type, *gnn_skip_type;
int gnn_saved_init(PyObject *module);
gnn_saved *gnn_saved_new(gnn_engine_object *engine, PyObject *tensor,
                         const gnn_tensor_view *view);
/* What stands for a tensor that stays: a detached tensor (a parameter itself) where its
 * version is 0, else a Skip around it. */
PyObject *gnn_skip_new(PyObject *tensor);
PyObject *gnn_skip_unpack(PyObject *packed); // either of them; checks the version

/* -------------------------------------------------------------------- torch_hooks.c */

typedef struct gnn_pass_object { // one entry of a context
    PyObject base;
    gnn_engine_object *engine;
    gnn_pass *pass; // NULL once the context was left
} gnn_pass_object;

PyObject *gnn_pack(PyObject *pass, PyObject *tensor); // a method of Pass
PyObject *gnn_keep_pack(PyObject *module,
                        PyObject *tensor); // everything stays, guarded
PyObject *gnn_unpack(PyObject *module, PyObject *packed);
typedef enum gnn_settle_mode {
    GNN_SETTLING,
    GNN_PACKING,   // on_full="raise" raises
    GNN_GIVING_UP, // an exception is on its way: wait for nothing
} gnn_settle_mode;
/* Does what budget and windows ask for. -1 with an exception. */
int gnn_settle(gnn_engine_object *engine, gnn_settle_mode mode);
/* The compute stream of the moment, asked for at every call; 0 where the host computes.
 * -1 with an exception. */
int gnn_current_stream(gnn_engine_object *engine, gnn_stream *stream);
/* Waits for the copy of a WAIT without the GIL. -1: a signal handler raised. */
int gnn_wait_copy(gnn_engine_object *engine, const gnn_action *action);

/* ------------------------------------------------------------------- torch_engine.c */

struct gnn_engine_object {
    PyObject base;
    gnn_engine *engine;
    int64_t min_bytes;
    bool raise_on_full;
    int device;              // of the tensors it moves, as in gnn_tensor_view
    PyObject *tensor_device; // the same as a torch.device
    PyObject *stream;      // stream(*stream_args): the current compute stream, an int;
    PyObject *stream_args; // NULL: the host computes
    PyObject *record_stream; // record_stream(tensor, stream): it is used there too
    unsigned forks;          // of this process when it was made
};

/* Globals of torch.utils.checkpoint and torch.autograd.function. */
extern PyObject *gnn_checkpoint_globals, *gnn_function_globals;
bool gnn_engine_is_ours(const gnn_engine_object *engine);     // false in a forked child
int gnn_engine_require_ours(const gnn_engine_object *engine); // -1 with an exception
int gnn_hooks_init(PyObject *module);                         // called by module.c

#endif
