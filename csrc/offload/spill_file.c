/* spill_file.c: opening, growing, reading and writing the unnamed file.
 *
 * Direct I/O is believed after a trial only: file systems accept the flag and then
 * refuse the write, or go through the page cache all the same, which would make memory
 * figures untrue.
 */
#include "offload/spill_file.h"
#include "offload/file_calls.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

/* What every disk takes, and the smallest page; pages of 64 KiB divide the trial. */
enum { BLOCK = 4096, TRIAL_BYTES = 16 * BLOCK, MAX_IDLE_TRIES = 1000 };

/* --------------------------------------------------------------------- file systems */

static const struct {
    uint32_t magic;
    const char *name;
    bool memory_backed;
} file_systems[] = {
    {0xEF53, "ext4", false},          {0x58465342, "xfs", false},
    {0x9123683E, "btrfs", false},     {0x2FC12FC1, "zfs", false},
    {0xF2F52010, "f2fs", false},      {0xCA451A4E, "bcachefs", false},
    {0x794C7630, "overlayfs", false}, {0x6969, "nfs", false},
    {0x0BD00BD0, "lustre", false},    {0x47504653, "gpfs", false},
    {0x00C36400, "ceph", false},      {0x65735546, "fuse", false},
    {0x01021997, "9p", false},        {0xFF534D42, "cifs", false},
    {0xFE534D42, "smb", false},       {0x19830326, "beegfs", false},
    {0x4D44, "vfat", false},          {0x2011BAB0, "exfat", false},
    {0x9FA0, "proc", false},          {0x62656572, "sysfs", false},
    {0x01021994, "tmpfs", true},      {0x858458F6, "ramfs", true},
    {0x958458F6, "hugetlbfs", true},
};

static void name_file_system(const struct statfs *info, const char **name,
                             bool *memory_backed) {
    *name = "unknown";
    *memory_backed = false;
    for (size_t f = 0; f < sizeof file_systems / sizeof *file_systems; f++) {
        if (file_systems[f].magic == (uint32_t)info->f_type) {
            *name = file_systems[f].name;
            *memory_backed = file_systems[f].memory_backed;
        }
    }
}

gnn_status gnn_file_system_of(const char *path, const char **name,
                              bool *memory_backed) {
    struct statfs info;
    GNN_REQUIRE(!statfs(path, &info), GNN_EIO, "%s: %s", path, strerror(errno));
    name_file_system(&info, name, memory_backed);
    return GNN_OK;
}

/* -------------------------------------------------------------------------- opening */

/* Where O_TMPFILE is not supported: a random name that exists for an instant. */
static int open_named(int directory) {
    for (int tries = 0; tries < 16; tries++) {
        uint64_t noise;
        if (getrandom(&noise, sizeof noise, 0) != (ssize_t)sizeof noise) {
            return -1;
        }
        char name[40] = ".gnnoffload-";
        for (size_t c = strlen(name), n = 0; n < 16; n++) {
            name[c + n] = "0123456789abcdef"[noise >> (4 * n) & 15];
        }
        int fd = gnn_file_calls_now()->openat(
            directory, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (fd >= 0 && unlinkat(directory, name, 0)) {
            int error = errno;
            close(fd);
            errno = error;
            return -1;
        }
        if (fd >= 0 || errno != EEXIST) {
            return fd;
        }
    }
    return -1;
}

static int open_unnamed(int directory) {
    int fd = gnn_file_calls_now()->openat(
        directory, ".", O_TMPFILE | O_RDWR | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 && errno != EACCES && errno != EPERM && errno != EROFS &&
        errno != ENOSPC && errno != EDQUOT && errno != EMFILE && errno != ENFILE) {
        fd = open_named(directory);
    }
    return fd;
}

static gnn_status open_in(const char *path, bool allow_memory_backed,
                          gnn_spill_file *file) {
    int directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    GNN_REQUIRE(directory >= 0 || errno != ENOENT, GNN_EIO,
                "spill directory %s does not exist", path);
    GNN_REQUIRE(directory >= 0 || errno != ENOTDIR, GNN_EIO,
                "spill directory %s is not a directory", path);
    GNN_REQUIRE(directory >= 0, GNN_EIO, "spill directory %s cannot be opened: %s",
                path, strerror(errno));
    struct statfs info;
    bool memory_backed = false;
    file->file_system = "unknown";
    if (!fstatfs(directory, &info)) {
        name_file_system(&info, &file->file_system, &memory_backed);
    }
    if (memory_backed && !allow_memory_backed) {
        close(directory);
        return gnn_fail(
            GNN_EIO,
            "spill directory %s is on %s, which keeps files in memory: choose "
            "a directory on a disk",
            path, file->file_system);
    }
    file->fd = open_unnamed(directory);
    int error = errno;
    close(directory);
    GNN_REQUIRE(file->fd >= 0 || (error != ENOSPC && error != EDQUOT), GNN_EFULL,
                "spill directory %s is full: %s", path, strerror(error));
    GNN_REQUIRE(file->fd >= 0, GNN_EIO, "spill directory %s is not writable: %s", path,
                strerror(error));
    return GNN_OK;
}

/* ----------------------------------------------------------------------- direct I/O */

static void ask_alignment(gnn_spill_file *file) {
    file->align = file->pointer_align = BLOCK;
#ifdef STATX_DIOALIGN // Linux 6.1; without it 4096 serves every disk we know
    struct statx info;
    if (!statx(file->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &info) &&
        info.stx_mask & STATX_DIOALIGN && info.stx_dio_mem_align) {
        file->pointer_align = info.stx_dio_mem_align;
        if (info.stx_dio_offset_align > BLOCK) {
            file->align = info.stx_dio_offset_align;
        }
    }
#endif
}

static bool in_page_cache(int fd) {
    unsigned char resident[TRIAL_BYTES / BLOCK] = {0};
    void *view = mmap(NULL, TRIAL_BYTES, PROT_READ, MAP_SHARED, fd, 0);
    if (view == MAP_FAILED) {
        return true;
    }
    bool found = mincore(view, TRIAL_BYTES, resident) != 0;
    for (size_t p = 0; p < sizeof resident; p++) {
        found = found || resident[p] & 1;
    }
    munmap(view, TRIAL_BYTES);
    return found;
}

/* Writes and reads a few pages: true when that works and leaves nothing in the page
 * cache. */
static bool direct_works(const gnn_spill_file *file) {
    const gnn_file_calls *calls = gnn_file_calls_now();
    if (TRIAL_BYTES % file->align) {
        return false;
    }
    char *pages = mmap(NULL, 2 * TRIAL_BYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) {
        return false;
    }
    memset(pages, 0x5a, TRIAL_BYTES);
    bool works =
        calls->pwrite(file->fd, pages, TRIAL_BYTES, 0) == TRIAL_BYTES &&
        calls->pread(file->fd, pages + TRIAL_BYTES, TRIAL_BYTES, 0) == TRIAL_BYTES &&
        !memcmp(pages, pages + TRIAL_BYTES, TRIAL_BYTES) && !in_page_cache(file->fd);
    munmap(pages, 2 * TRIAL_BYTES);
    return works;
}

/* Through the page cache slots are whole pages: a part of one could not be dropped. */
static int64_t page_bytes(void) {
    const int64_t page = sysconf(_SC_PAGESIZE);
    return page > BLOCK ? page : BLOCK;
}

static void try_direct(gnn_spill_file *file) {
    int flags = fcntl(file->fd, F_GETFL);
    ask_alignment(file);
    file->direct = !fcntl(file->fd, F_SETFL, flags | O_DIRECT) && direct_works(file);
    if (!file->direct) {
        fcntl(file->fd, F_SETFL, flags);
        file->align = page_bytes();
    }
    gnn_file_calls_now()->ftruncate(file->fd, 0);
}

gnn_status gnn_spill_open(const char *directory, bool allow_memory_backed, bool direct,
                          gnn_spill_file *file) {
    *file = (gnn_spill_file){.fd = -1, .align = page_bytes(), .pointer_align = 1};
    GNN_TRY(open_in(directory, allow_memory_backed, file));
    file->directory = strdup(directory);
    if (!file->directory) {
        gnn_spill_close(file);
        return gnn_fail(GNN_ENOMEM, "spill directory %s: out of memory", directory);
    }
    if (direct) {
        try_direct(file);
    }
    if (!file->direct) { // read-ahead would fill the cache with what is not asked for
        posix_fadvise(file->fd, 0, 0, POSIX_FADV_RANDOM);
    }
    return GNN_OK;
}

void gnn_spill_close(gnn_spill_file *file) {
    if (file->fd >= 0) {
        close(file->fd);
    }
    free(file->directory);
    file->fd = -1;
    file->directory = NULL;
}

/* -------------------------------------------------------------- growing and copying */

static bool means_full(int error) {
    return error == ENOSPC || error == EDQUOT || error == EFBIG;
}

static gnn_status fail_io(const gnn_spill_file *file, const char *verb, int64_t bytes,
                          int64_t offset, int error) {
    return gnn_fail(means_full(error) ? GNN_EFULL : GNN_EIO,
                    "%s %lld bytes at offset %lld of the spill file in %s: %s", verb,
                    (long long)bytes, (long long)offset, file->directory,
                    strerror(error));
}

gnn_status gnn_spill_grow(const gnn_spill_file *file, int64_t from, int64_t bytes) {
    const gnn_file_calls *calls = gnn_file_calls_now();
    int failed;
    do {
        failed = calls->fallocate(file->fd, 0, from, bytes - from);
    } while (failed && errno == EINTR);
    if (failed && (errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL)) {
        failed = calls->ftruncate(file->fd, bytes);
    }
    return failed ? fail_io(file, "reserving", bytes - from, from, errno) : GNN_OK;
}

static void rest_a_millisecond(void) {
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

/* What of a transfer of `moved` bytes counts: with direct I/O the next one must
 * begin at an aligned place again. */
static int64_t usable(const gnn_spill_file *file, int64_t moved) {
    return file->direct ? moved - moved % file->align : moved;
}

gnn_status gnn_spill_write(const gnn_spill_file *file, const char *from, int64_t bytes,
                           int64_t offset) {
    const gnn_file_calls *calls = gnn_file_calls_now();
    int64_t done = 0;
    for (int idle = 0; done < bytes;) {
        ssize_t moved =
            calls->pwrite(file->fd, from + done, (size_t)(bytes - done), offset + done);
        int error = moved < 0 ? errno : 0;
        if (error == EINTR) {
            continue;
        }
        if (error && error != EAGAIN) {
            return fail_io(file, "writing", bytes - done, offset + done, error);
        }
        int64_t gained = error ? 0 : usable(file, moved);
        done += gained;
        if (gained == 0) {
            if (++idle > MAX_IDLE_TRIES) {
                return fail_io(file, "writing", bytes - done, offset + done,
                               error ? error : EIO);
            }
            rest_a_millisecond();
        }
    }
    return GNN_OK;
}

gnn_status gnn_spill_read(const gnn_spill_file *file, char *to, int64_t bytes,
                          int64_t offset) {
    const gnn_file_calls *calls = gnn_file_calls_now();
    int64_t done = 0;
    for (int idle = 0; done < bytes;) {
        ssize_t moved =
            calls->pread(file->fd, to + done, (size_t)(bytes - done), offset + done);
        int error = moved < 0 ? errno : 0;
        if (error == EINTR) {
            continue;
        }
        if (error && error != EAGAIN) {
            return fail_io(file, "reading", bytes - done, offset + done, error);
        }
        if (moved == 0) { // the tier was reserved to its end: somebody cut the file
            return gnn_fail(
                GNN_EIO,
                "the spill file in %s ends at byte %lld, %lld were written: "
                "it was truncated",
                file->directory, (long long)(offset + done),
                (long long)(offset + bytes));
        }
        int64_t gained = error ? 0 : usable(file, moved);
        done += gained;
        if (gained == 0) {
            if (++idle > MAX_IDLE_TRIES) {
                return fail_io(file, "reading", bytes - done, offset + done,
                               error ? error : EIO);
            }
            rest_a_millisecond();
        }
    }
    return GNN_OK;
}
