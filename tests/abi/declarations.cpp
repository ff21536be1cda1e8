// Compiled, never linked: our C declarations of libtorch's entry points after torch's own.
// Any difference in a result or a parameter is a compile error. With -DWRONG one is made
// on purpose, to see that it is found.
#define USE_CUDA // for its declarations; no CUDA header is needed
#include <torch/csrc/stable/c/shim.h>

#include "torch/torch_abi.h"

#define DECLARE(result, name, parameters) extern "C" result name parameters;
TORCH_ABI_REQUIRED(DECLARE)
TORCH_ABI_OPTIONAL(DECLARE)
TORCH_ABI_CUDA(DECLARE)

#ifdef WRONG
extern "C" AOTITorchError aoti_torch_get_dim(AtenTensorHandle, int32_t *);
#endif
