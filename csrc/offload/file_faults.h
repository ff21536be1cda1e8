/* file_faults.h: makes system calls of the file link fail on purpose, for tests in C
 * and in Python. Nothing here runs unless a test asks for it.
 */
#ifndef GNN_FILE_FAULTS_H
#define GNN_FILE_FAULTS_H

#include "gnn.h"

typedef struct gnn_file_fault {
    const char *call; // "openat", "pread", "pwrite", "fallocate", "ftruncate",
                      // "sync_file_range"
    int error;     // errno of the failing calls; 0: pread and pwrite move a part only
    int64_t after; // calls that work first
    int64_t times; // calls that fail then; negative: all
} gnn_file_fault;

/* Arms one fault, replacing the last; NULL disarms. GNN_EINVAL for an unknown call.
 * Set it while no copy is under way. */
gnn_status gnn_file_fault_set(const gnn_file_fault *fault);
/* Calls that the fault now armed has hit. */
int64_t gnn_file_fault_hits(void);

#endif
