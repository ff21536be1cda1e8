/* file_calls.h: the system calls the file link makes on its spill file, as a table, so
 * that a test can put faults in their place. The product never sets it.
 */
#ifndef GNN_FILE_CALLS_H
#define GNN_FILE_CALLS_H

#include <sys/types.h>

typedef struct gnn_file_calls {
    int (*openat)(int directory, const char *path, int flags, mode_t mode);
    ssize_t (*pread)(int fd, void *buffer, size_t bytes, off_t offset);
    ssize_t (*pwrite)(int fd, const void *buffer, size_t bytes, off_t offset);
    int (*fallocate)(int fd, int mode, off_t offset, off_t bytes);
    int (*ftruncate)(int fd, off_t bytes);
    int (*sync_file_range)(int fd, off_t offset, off_t bytes, unsigned flags);
} gnn_file_calls;

const gnn_file_calls *gnn_file_calls_real(void);
const gnn_file_calls *gnn_file_calls_now(void);
/* Replaces the table for every link of the process; NULL restores the real one. Set
 * it while no copy is under way. */
void gnn_file_calls_set(const gnn_file_calls *calls);

#endif
