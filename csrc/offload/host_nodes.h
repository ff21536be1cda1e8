/* host_nodes.h: host memory on the right NUMA node, without libnuma.
 *
 * A GPU's own memory may show as a NUMA node (Grace Hopper): a node with memory and no
 * CPU. Pages of a slab must never lie there, so they are bound to nodes that have CPUs:
 * to the GPU's nearest one while it has room for them, else to any.
 */
#ifndef GNN_HOST_NODES_H
#define GNN_HOST_NODES_H

#include "gnn.h"

enum { GNN_MAX_NODES = 1024 };

typedef struct gnn_node_set {
    unsigned long bits[GNN_MAX_NODES / (8 * sizeof(unsigned long))];
    int n; // nodes in it
} gnn_node_set;

/* The nodes that may hold `bytes` of a slab for a device whose nearest host node is
 * `nearest` (-1: unknown) and whose own memory is node `own` (-1: none).
 *   root  where /sys is: "" outside of tests
 * An empty set: the machine tells nothing, or has one node; then nothing is bound. */
void gnn_nodes_for_slab(const char *root, int nearest, int own, int64_t bytes,
                        gnn_node_set *nodes);
/* Binds pages not yet touched. False where the kernel refuses, as in some containers. */
bool gnn_nodes_bind(const gnn_node_set *nodes, void *memory, int64_t bytes);
/* Reads a list such as "0-3,8" into a set; false: not such a list. */
bool gnn_nodes_parse(const char *text, gnn_node_set *nodes);
bool gnn_nodes_has(const gnn_node_set *nodes, int node);

#endif
