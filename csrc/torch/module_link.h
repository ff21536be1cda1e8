/* module_link.h: functions of gnnoffload._C about links, build and CUDA. */
#ifndef GNN_MODULE_LINK_H
#define GNN_MODULE_LINK_H

#include <Python.h>

/* Adds the functions to the module; -1 with an exception set on failure. */
int module_link_init(PyObject *module);

#endif
