/* spill_file.h: an unnamed file in a directory that the user chose, and what is known
 * about it.
 *
 * No name leads to the file, so nothing is left behind however the process ends, and
 * nobody else can open it. The directory may be a symbolic link, shared or
 * world-writable (/var/tmp): the file has mode 0600 and is created exclusively.
 */
#ifndef GNN_SPILL_FILE_H
#define GNN_SPILL_FILE_H

#include "gnn.h"

typedef struct gnn_spill_file {
    int fd;
    char *directory;         // as given, for messages
    const char *file_system; // "ext4"
    bool direct;             // reads and writes bypass the page cache
    int64_t align;           // of file offsets and lengths, at least 4096
    int64_t pointer_align;   // of memory, for direct I/O
} gnn_spill_file;

/* Opens it; with `direct`, uses direct I/O where a trial shows that it works.
 * GNN_EIO naming the directory when it is missing, no directory, not writable, or
 * memory-backed without allow_memory_backed; GNN_EFULL when it has no space. */
gnn_status gnn_spill_open(const char *directory, bool allow_memory_backed, bool direct,
                          gnn_spill_file *file);
void gnn_spill_close(gnn_spill_file *file);

/* Makes the file `bytes` long with its space reserved where the file system can.
 * GNN_EFULL when there is no space (disk, quota, file-size limit), GNN_EIO else. */
gnn_status gnn_spill_grow(const gnn_spill_file *file, int64_t from, int64_t bytes);

/* Writes all of [offset, offset + bytes), however short the single writes are. With
 * direct I/O the three numbers are aligned. GNN_EFULL as above, GNN_EIO else. */
gnn_status gnn_spill_write(const gnn_spill_file *file, const char *from, int64_t bytes,
                           int64_t offset);
/* Reads all of it. GNN_EIO when reading fails or the file ends early. */
gnn_status gnn_spill_read(const gnn_spill_file *file, char *to, int64_t bytes,
                          int64_t offset);

/* The type of the file system that holds `path`, "unknown" when we have no name for
 * it. */
gnn_status gnn_file_system_of(const char *path, const char **name, bool *memory_backed);

#endif
