/* build.c: how this library was built, as `python -m gnnoffload doctor` reports it.
 * setup.py defines the macros; a build without it (the C tests) leaves them empty. */
#include "gnn.h"

#ifndef GNN_BUILD_FLAGS
#define GNN_BUILD_FLAGS ""
#endif
#ifndef GNN_BUILD_CUDA
#define GNN_BUILD_CUDA ""
#endif
#ifdef __clang__
#define COMPILER "clang " __clang_version__
#else
#define COMPILER "gcc " __VERSION__
#endif

gnn_build gnn_build_facts(void) {
    return (gnn_build){
        .compiler = COMPILER, .flags = GNN_BUILD_FLAGS, .cuda = GNN_BUILD_CUDA};
}
