/* host_nodes.c: /sys/devices/system/node and mbind(2). */
#include "offload/host_nodes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { WORD = 8 * sizeof(unsigned long), BIND = 2 /* MPOL_BIND of mempolicy.h */ };

static void add(gnn_node_set *nodes, int node) {
    nodes->bits[node / WORD] |= 1ul << (node % WORD);
    nodes->n++;
}

bool gnn_nodes_has(const gnn_node_set *nodes, int node) {
    return node >= 0 && node < GNN_MAX_NODES &&
           (nodes->bits[node / WORD] >> (node % WORD) & 1);
}

bool gnn_nodes_parse(const char *text, gnn_node_set *nodes) {
    memset(nodes, 0, sizeof *nodes);
    while (*text && *text != '\n') {
        char *end;
        long first = strtol(text, &end, 10), last = first;
        if (end == text) {
            return false;
        }
        if (*end == '-') {
            text = end + 1;
            last = strtol(text, &end, 10);
            if (end == text) {
                return false;
            }
        }
        if (first < 0 || last < first || last >= GNN_MAX_NODES) {
            return false;
        }
        for (long node = first; node <= last; node++) {
            add(nodes, (int)node);
        }
        text = *end == ',' ? end + 1 : end;
        if (*end && *end != ',' && *end != '\n') {
            return false;
        }
    }
    return true;
}

/* The first lines of a small file; false when it cannot be read. */
static bool read_text(const char *root, const char *path, char *text, size_t size) {
    char full[512];
    snprintf(full, sizeof full, "%s%s", root, path);
    FILE *file = fopen(full, "re");
    if (!file) {
        return false;
    }
    size_t n = fread(text, 1, size - 1, file);
    text[n] = 0;
    fclose(file);
    return true;
}

static bool read_nodes(const char *root, const char *path, gnn_node_set *nodes) {
    char text[4096];
    return read_text(root, path, text, sizeof text) && gnn_nodes_parse(text, nodes);
}

static int64_t free_bytes(const char *root, int node) {
    char path[80], text[4096];
    snprintf(path, sizeof path, "/sys/devices/system/node/node%d/meminfo", node);
    if (!read_text(root, path, text, sizeof text)) {
        return 0;
    }
    const char *line = strstr(text, "MemFree:");
    return line ? 1024 * strtoll(line + strlen("MemFree:"), NULL, 10) : 0;
}

void gnn_nodes_for_slab(const char *root, int nearest, int own, int64_t bytes,
                        gnn_node_set *nodes) {
    gnn_node_set with_cpu, with_memory;
    memset(nodes, 0, sizeof *nodes);
    if (!read_nodes(root, "/sys/devices/system/node/has_cpu", &with_cpu) ||
        !read_nodes(root, "/sys/devices/system/node/has_memory", &with_memory) ||
        with_memory.n < 2) {
        return;
    }
    for (int node = 0; node < GNN_MAX_NODES; node++) {
        if (node != own && gnn_nodes_has(&with_cpu, node) &&
            gnn_nodes_has(&with_memory, node)) {
            add(nodes, node);
        }
    }
    // Strictly bound pages that find no room end the process: ask for an eighth more.
    if (gnn_nodes_has(nodes, nearest) &&
        free_bytes(root, nearest) > bytes + bytes / 8) {
        memset(nodes, 0, sizeof *nodes);
        add(nodes, nearest);
    }
}

bool gnn_nodes_bind(const gnn_node_set *nodes, void *memory, int64_t bytes) {
    // The kernel reads one bit less than it is told.
    return syscall(SYS_mbind, memory, (unsigned long)bytes, (unsigned long)BIND,
                   nodes->bits, (unsigned long)GNN_MAX_NODES + 1, 0ul) == 0;
}
