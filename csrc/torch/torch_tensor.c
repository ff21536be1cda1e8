/* torch_tensor.c: tensors seen from C without libtorch's C++.
 *
 * Shape, strides and address come through DLPack's C exchange table (borrowed, no
 * allocation); the rest through cached attributes and methods of torch.Tensor, which
 * for an exact Tensor cost tens of nanoseconds. All calls hold the GIL.
 */
#include <Python.h>

#include <stdlib.h>
#include <string.h>

#include "torch_hooks.h"

/* ------------------------------------------- DLPack 1.x, the part that is used here */

typedef struct dl_tensor {
    void *data;
    int32_t device_type, device_id;
    int32_t ndim;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t byte_offset;
} dl_tensor;

typedef struct dl_exchange {
    uint32_t major, minor;
    const struct dl_exchange *previous;
    void (*allocate)(void), (*from_py_object)(void), (*to_py_object)(void);
    int (*dltensor_from_py_object)(void *tensor, dl_tensor *out);
    void (*current_work_stream)(void);
} dl_exchange;

enum { DL_CPU = 1, DL_CUDA = 2 };

/* -------------------------------------------------------------------- what we cache */

static const dl_exchange *exchange;
static PyObject *tensor_type, *parameter_type, *alone_count;
static PyObject *as_strided, *view_as, *untyped_storage, *set_storage, *is_neg,
    *is_conj, *is_zero, *get_storage_offset;
static PyObject *use_count, *empty_strided, *uint8, *one_stride;
static PyObject *s_detach, *s_cdata, *s_nbytes, *s_dtype, *s_grad_fn, *s_next_functions,
    *s_variable;

/* Two attributes and detach are read for every saved tensor: their C functions are
 * called directly, which saves the lookup along the class hierarchy. */
static PyGetSetDef get_version, get_base;
static PyCFunction detach_function; // METH_NOARGS

#define CALL(...) PyObject_CallFunctionObjArgs(__VA_ARGS__, NULL)

static int get(PyObject *from, const char *name, PyObject **to) {
    return (*to = PyObject_GetAttrString(from, name)) ? 0 : -1;
}

/* The getter behind an attribute of torch.Tensor, from the C class that has it. */
static int bind_getter(const char *name, PyGetSetDef *to) {
    PyObject *descriptor = PyObject_GetAttrString(tensor_type, name);
    PyObject *owner =
        descriptor ? PyObject_GetAttrString(descriptor, "__objclass__") : NULL;
    const PyGetSetDef *entry =
        owner ? PyType_GetSlot((PyTypeObject *)owner, Py_tp_getset) : NULL;
    while (entry && entry->name && strcmp(entry->name, name) != 0) {
        entry++;
    }
    bool found = entry && entry->name;
    if (found) {
        *to = *entry; // torch's table is static
    } else if (!PyErr_Occurred()) {
        PyErr_Format(PyExc_ImportError, "gnnoffload: torch.Tensor.%s is no C attribute",
                     name);
    }
    Py_XDECREF(descriptor), Py_XDECREF(owner);
    return found ? 0 : -1;
}

static PyObject *read_with(const PyGetSetDef *attribute, PyObject *tensor) {
    return attribute->get(tensor, attribute->closure);
}

/* The function behind tensor.detach, if it takes no arguments. */
static int bind_detach(PyObject *tensor) {
    PyObject *bound = PyObject_GetAttrString(tensor, "detach");
    if (bound && PyCFunction_GetFlags(bound) == METH_NOARGS) {
        detach_function = PyCFunction_GetFunction(bound);
    }
    PyErr_Clear();
    Py_XDECREF(bound);
    return 0;
}

static int bind_exchange(void) {
    PyObject *capsule;
    if (get(tensor_type, "__dlpack_c_exchange_api__", &capsule) < 0) {
        return -1;
    }
    const dl_exchange *table = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
    Py_DECREF(capsule);
    if (table && table->major != 1) {
        PyErr_Format(PyExc_ImportError,
                     "gnnoffload needs DLPack 1.x of torch, got %u.%u", table->major,
                     table->minor);
        return -1;
    }
    exchange = table;
    return table ? 0 : -1;
}

/* Use count of a storage, an int. */
static PyObject *count_of(uintptr_t key) {
    PyObject *number = PyLong_FromUnsignedLongLong(key);
    PyObject *count = number ? CALL(use_count, number) : NULL;
    Py_XDECREF(number);
    return count;
}

/* Use count of the storage of one tensor that nobody else has: what "alone" means here.
 * */
static int calibrate(PyObject *cpu) {
    char *address;
    int64_t bytes;
    uintptr_t key;
    PyObject *tensor = gnn_make_bytes(cpu, 16, 0, &address, &bytes), *held = NULL;
    if (tensor && bind_detach(tensor) == 0 && (held = gnn_detach(tensor)) != NULL) {
        Py_CLEAR(tensor);
        if (gnn_storage(held, &key, &bytes) == 0) {
            alone_count = count_of(key);
        }
    }
    Py_XDECREF(tensor), Py_XDECREF(held);
    return alone_count ? 0 : -1;
}

static int bind_torch(PyObject *torch) {
    PyObject *c = NULL, *nn = NULL;
    int failed = get(torch, "Tensor", &tensor_type) < 0 || get(torch, "_C", &c) < 0 ||
                 get(torch, "nn", &nn) < 0 ||
                 get(nn, "Parameter", &parameter_type) < 0 ||
                 bind_getter("_version", &get_version) < 0 ||
                 bind_getter("_base", &get_base) < 0 ||
                 get(tensor_type, "as_strided", &as_strided) < 0 ||
                 get(tensor_type, "view", &view_as) < 0 ||
                 get(tensor_type, "untyped_storage", &untyped_storage) < 0 ||
                 get(tensor_type, "set_", &set_storage) < 0 ||
                 get(tensor_type, "is_neg", &is_neg) < 0 ||
                 get(tensor_type, "is_conj", &is_conj) < 0 ||
                 get(tensor_type, "_is_zerotensor", &is_zero) < 0 ||
                 get(tensor_type, "storage_offset", &get_storage_offset) < 0 ||
                 get(c, "_storage_Use_Count", &use_count) < 0 ||
                 get(torch, "empty_strided", &empty_strided) < 0 ||
                 get(torch, "uint8", &uint8) < 0 || bind_exchange() < 0;
    Py_XDECREF(c), Py_XDECREF(nn);
    PyObject *cpu = failed ? NULL : PyObject_CallMethod(torch, "device", "s", "cpu");
    one_stride = cpu ? Py_BuildValue("(i)", 1) : NULL;
    failed = !one_stride || calibrate(cpu) < 0;
    Py_XDECREF(cpu);
    return failed ? -1 : 0;
}

int gnn_torch_bind(void) {
    if (alone_count) {
        return 0;
    }
    struct {
        PyObject **to;
        const char *text;
    } names[] = {
        {&s_detach, "detach"},
        {&s_cdata, "_cdata"},
        {&s_nbytes, "nbytes"},
        {&s_dtype, "dtype"},
        {&s_grad_fn, "grad_fn"},
        {&s_variable, "variable"},
        {&s_next_functions, "next_functions"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (!(*names[i].to = PyUnicode_InternFromString(names[i].text))) {
            return -1;
        }
    }
    PyObject *torch = PyImport_ImportModule("torch");
    int status = torch ? bind_torch(torch) : -1;
    Py_XDECREF(torch);
    return status;
}

/* -------------------------------------------------------------------------- reading */

int gnn_tensor_read(PyObject *tensor, gnn_tensor_view *view) {
    dl_tensor dl;
    if (exchange->dltensor_from_py_object(tensor, &dl) != 0) {
        PyErr_Clear();
        return -1;
    }
    int64_t itemsize = ((int64_t)dl.bits * dl.lanes + 7) / 8;
    int64_t numel = 1, low = 0, high = 0;
    for (int32_t i = 0; i < dl.ndim; i++) {
        int64_t reach = (dl.shape[i] - 1) * dl.strides[i];
        numel *= dl.shape[i];
        *(reach < 0 ? &low : &high) += reach;
    }
    if (numel > 0 && !dl.data) {
        return -1; // fake tensors and their kin
    }
    *view = (gnn_tensor_view){
        .data = (char *)dl.data + dl.byte_offset,
        .ndim = dl.ndim,
        .shape = dl.shape,
        .strides = dl.strides,
        .itemsize = itemsize,
        .numel = numel,
        .lo = numel > 0 ? low * itemsize : 0,
        .hi = numel > 0 ? (high + 1) * itemsize : 0,
        .device = dl.device_type == DL_CPU    ? GNN_ON_CPU
                  : dl.device_type == DL_CUDA ? dl.device_id
                                              : GNN_ELSEWHERE,
    };
    return 0;
}

bool gnn_is_plain(PyObject *tensor) {
    PyObject *type = (PyObject *)Py_TYPE(tensor);
    return type == tensor_type || type == parameter_type;
}

/* tensor._base, or the tensor itself where it is no view. New reference. */
static PyObject *base_of(PyObject *tensor) {
    PyObject *base = read_with(&get_base, tensor);
    if (base == Py_None) {
        Py_DECREF(base);
        return Py_NewRef(tensor);
    }
    if (!base) {
        PyErr_Clear();
        return Py_NewRef(tensor);
    }
    return base;
}

bool gnn_is_view(PyObject *tensor) {
    PyObject *base = read_with(&get_base, tensor);
    bool is_view = base != Py_None;
    if (!base) {
        PyErr_Clear();
    }
    Py_XDECREF(base);
    return is_view;
}

bool gnn_is_parameter(PyObject *tensor) {
    if ((PyObject *)Py_TYPE(tensor) == parameter_type) {
        return true;
    }
    PyObject *base = base_of(tensor);
    bool is_parameter = PyObject_TypeCheck(base, (PyTypeObject *)parameter_type);
    Py_DECREF(base);
    return is_parameter;
}

int gnn_is_parameter_cast(PyObject *tensor) {
    int result = -1;
    PyObject *base = base_of(tensor), *next = NULL, *variable = NULL;
    PyObject *node = PyObject_GetAttr(base, s_grad_fn);
    PyObject *name = node ? PyType_GetName(Py_TYPE(node)) : NULL;
    if (name && PyUnicode_CompareWithASCIIString(name, "ToCopyBackward0") != 0) {
        result = 0;
    } else if (name && (next = PyObject_GetAttr(node, s_next_functions)) != NULL) {
        PyObject *first = PyTuple_Size(next) == 1 ? PyTuple_GetItem(next, 0) : NULL;
        PyObject *source = first ? PyTuple_GetItem(first, 0) : NULL;
        variable = source ? PyObject_GetAttr(source, s_variable) : NULL;
        if (!variable) {
            PyErr_Clear(); // no leaf feeds the cast
        }
        result =
            variable && PyObject_TypeCheck(variable, (PyTypeObject *)parameter_type);
    }
    Py_DECREF(base);
    Py_XDECREF(node), Py_XDECREF(name), Py_XDECREF(next), Py_XDECREF(variable);
    return result;
}

static int is_true(PyObject *answer) {
    int result = answer ? PyObject_IsTrue(answer) : -1;
    Py_XDECREF(answer);
    return result;
}

int gnn_has_bits(PyObject *tensor) {
    int bits = is_true(CALL(is_neg, tensor));
    bits = bits ? bits : is_true(CALL(is_conj, tensor));
    return bits ? bits : is_true(CALL(is_zero, tensor));
}

bool gnn_is_exact_parameter(PyObject *tensor) {
    return (PyObject *)Py_TYPE(tensor) == parameter_type;
}

PyObject *gnn_detach(PyObject *tensor) {
    if (detach_function && gnn_is_plain(tensor)) {
        return detach_function(tensor, NULL);
    }
    return PyObject_CallMethodObjArgs(tensor, s_detach, NULL); // a subclass has its own
}

PyObject *gnn_version_object(PyObject *tensor) {
    return read_with(&get_version, tensor);
}

static int64_t to_int(PyObject *number) {
    int64_t value = number ? PyLong_AsLongLong(number) : -1;
    Py_XDECREF(number);
    return value;
}

int64_t gnn_version(PyObject *tensor) {
    return to_int(gnn_version_object(tensor));
}

int64_t gnn_storage_offset(PyObject *tensor) {
    return to_int(CALL(get_storage_offset, tensor));
}

PyObject *gnn_dtype_of(PyObject *tensor) {
    return PyObject_GetAttr(tensor, s_dtype);
}

int gnn_storage(PyObject *tensor, uintptr_t *key, int64_t *bytes) {
    PyObject *storage = CALL(untyped_storage, tensor);
    if (!storage) {
        return -1;
    }
    int64_t size =
        bytes ? to_int(PyObject_CallMethodObjArgs(storage, s_nbytes, NULL)) : 0;
    PyObject *number = size < 0 ? NULL : PyObject_GetAttr(storage, s_cdata);
    Py_DECREF(storage);
    if (!number) {
        return -1;
    }
    *key = (uintptr_t)PyLong_AsUnsignedLongLong(number);
    Py_DECREF(number);
    if (bytes) {
        *bytes = size;
    }
    return 0;
}

int gnn_is_alone(uintptr_t key) {
    PyObject *count = count_of(key);
    int alone = count ? PyObject_RichCompareBool(count, alone_count, Py_EQ) : -1;
    Py_XDECREF(count);
    return alone;
}

/* --------------------------------------------------------------------------- making */

/* Keyword arguments of empty_strided. Most reloads want one dtype or plain bytes on one
 * device: the last few are kept. */
static PyObject *keywords_of(PyObject *dtype, PyObject *device) {
    static struct {
        PyObject *dtype, *device, *keywords;
    } kept[4];
    static unsigned oldest;
    for (int k = 0; k < 4; k++) {
        if (kept[k].dtype == dtype && kept[k].device == device) {
            return Py_NewRef(kept[k].keywords);
        }
    }
    PyObject *keywords = Py_BuildValue("{s:O,s:O}", "dtype", dtype, "device", device);
    if (!keywords) {
        return NULL;
    }
    unsigned k = oldest++ % 4;
    Py_XDECREF(kept[k].keywords);
    kept[k].dtype = dtype, kept[k].device = device; // both held by the dict
    kept[k].keywords = keywords;
    return Py_NewRef(keywords);
}

PyObject *gnn_make_bytes(PyObject *device, int64_t bytes, uintptr_t like,
                         char **address, int64_t *held) {
    int64_t skew = (int64_t)(like % GNN_ALIGNMENT);
    int64_t size = (bytes + skew + 15) / 16 * 16;
    PyObject *args = Py_BuildValue("((L)O)", (long long)size, one_stride);
    PyObject *keywords = args ? keywords_of(uint8, device) : NULL;
    PyObject *tensor = keywords ? PyObject_Call(empty_strided, args, keywords) : NULL;
    Py_XDECREF(args), Py_XDECREF(keywords);
    gnn_tensor_view view;
    if (tensor && gnn_tensor_read(tensor, &view) < 0) {
        PyErr_SetString(PyExc_RuntimeError, "torch.empty_strided gave no memory");
        Py_CLEAR(tensor);
    }
    if (tensor) {
        *address = view.data + skew; // torch aligns to GNN_ALIGNMENT
        *held = size;
    }
    return tensor;
}

static PyObject *to_tuple(const int64_t *values, int32_t n) {
    PyObject *tuple = PyTuple_New(n);
    for (int32_t i = 0; tuple && i < n; i++) {
        PyObject *value = PyLong_FromLongLong(values[i]);
        if (!value || PyTuple_SetItem(tuple, i, value) < 0) {
            Py_CLEAR(tuple);
        }
    }
    return tuple;
}

PyObject *gnn_make_empty(PyObject *device, PyObject *dtype, int32_t ndim,
                         const int64_t *shape_strides, char **address) {
    PyObject *shape = to_tuple(shape_strides, ndim);
    PyObject *strides = to_tuple(shape_strides + ndim, ndim);
    PyObject *args = shape && strides ? PyTuple_Pack(2, shape, strides) : NULL;
    PyObject *keywords = args ? keywords_of(dtype, device) : NULL;
    PyObject *tensor = keywords ? PyObject_Call(empty_strided, args, keywords) : NULL;
    Py_XDECREF(shape), Py_XDECREF(strides), Py_XDECREF(args), Py_XDECREF(keywords);
    gnn_tensor_view view;
    if (tensor && gnn_tensor_read(tensor, &view) < 0) {
        PyErr_SetString(PyExc_RuntimeError, "torch.empty_strided gave no memory");
        Py_CLEAR(tensor);
    }
    if (tensor) {
        *address = view.data;
    }
    return tensor;
}

/* For a storage that was saved under several dtypes: no view of the source, a new
 * tensor. */
static PyObject *set_view(PyObject *owner, PyObject *device, PyObject *dtype,
                          PyObject *offset, PyObject *shape, PyObject *strides) {
    PyObject *storage = CALL(untyped_storage, owner);
    PyObject *keywords = keywords_of(dtype, device);
    PyObject *none = Py_BuildValue("((i)O)", 0, one_stride), *result = NULL;
    PyObject *tensor = storage && keywords && none
                           ? PyObject_Call(empty_strided, none, keywords)
                           : NULL;
    if (tensor) {
        result = CALL(set_storage, tensor, storage, offset, shape, strides);
    }
    Py_XDECREF(storage), Py_XDECREF(keywords), Py_XDECREF(none), Py_XDECREF(tensor);
    return result;
}

PyObject *gnn_make_view(PyObject *owner, PyObject *device, PyObject *dtype,
                        int64_t itemsize, int64_t byte_offset, int32_t ndim,
                        const int64_t *shape_strides) {
    PyObject *shape = to_tuple(shape_strides, ndim);
    PyObject *strides = to_tuple(shape_strides + ndim, ndim);
    PyObject *offset = PyLong_FromLongLong(byte_offset / itemsize);
    PyObject *own = gnn_dtype_of(owner), *result = NULL, *typed = NULL;
    if (shape && strides && offset && own) {
        if (own == dtype) {
            typed = Py_NewRef(owner);
        } else if (own == uint8) {
            typed = CALL(view_as, owner, dtype); // flat, a multiple of 16 bytes
            if (!typed) {
                PyErr_Clear();
            }
        }
        result = typed ? CALL(as_strided, typed, shape, strides, offset)
                       : set_view(owner, device, dtype, offset, shape, strides);
    }
    Py_XDECREF(shape), Py_XDECREF(strides), Py_XDECREF(offset);
    Py_XDECREF(own), Py_XDECREF(typed);
    return result;
}

/* -------------------------------------------------------------------------- raising */

void gnn_raise_changed(PyObject *tensor, int64_t version, int64_t expected) {
    PyObject *type = tensor ? PyObject_CallMethod(tensor, "type", NULL) : NULL;
    PyObject *shape = tensor ? PyObject_GetAttrString(tensor, "shape") : NULL;
    PyObject *sizes = shape ? PySequence_List(shape) : NULL;
    PyErr_Clear();
    PyObject *unknown = PyUnicode_FromString("torch.Tensor");
    PyErr_Format(
        PyExc_RuntimeError,
        "one of the variables needed for gradient computation has been modified "
        "by an inplace operation: [%S %S] is at version %lld; expected version "
        "%lld instead. Hint: enable anomaly detection to find the operation that "
        "failed to compute its gradient, with "
        "torch.autograd.set_detect_anomaly(True, check_nan=False).",
        type ? type : unknown, sizes ? sizes : Py_None, (long long)version,
        (long long)expected);
    Py_XDECREF(type), Py_XDECREF(shape), Py_XDECREF(sizes), Py_XDECREF(unknown);
}

void gnn_raise(gnn_status status) {
    const char *name = gnn_status_exception(status);
    PyObject *module = PyImport_ImportModule("gnnoffload.errors"), *exception = NULL;
    if (module && name) {
        exception = PyObject_GetAttrString(module, name);
    }
    if (!exception && name) {
        PyErr_Clear();
        PyObject *builtins = PyImport_ImportModule("builtins");
        exception = builtins ? PyObject_GetAttrString(builtins, name) : NULL;
        Py_XDECREF(builtins);
    }
    PyErr_Clear();
    PyErr_SetString(exception ? exception : PyExc_RuntimeError, gnn_message());
    Py_XDECREF(module), Py_XDECREF(exception);
}
