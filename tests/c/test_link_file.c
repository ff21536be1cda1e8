/* test_link_file.c: the file link on a real disk, with direct I/O and through the
 * page cache: odd sizes and addresses, many copies at once, refused directories,
 * full disk, fork, close; and that no name leads to the file.
 * law: 9 */
#include "link_checks.h"

#include <dirent.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>

static const char *const disk = "/var/tmp";

static gnn_link *open_link(int64_t limit, bool direct) {
    gnn_link_file_options options = {disk, limit, 2, true, direct};
    gnn_link *link;
    CHECK(gnn_link_file_open(&options, &link) == GNN_OK);
    return link;
}

static void test_sizes(bool direct) {
    static const int64_t sizes[] = {1,           511,     512,         4095,
                                    4096,        4097,    MIB - 1,     MIB,
                                    2 * MIB - 1, 2 * MIB, 2 * MIB + 1, 7 * MIB + 4095};
    static const int64_t shifts[] = {0, 1, 64, 512};
    gnn_link *link = open_link(64 * MIB, direct);
    gnn_link_stats stats;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        for (size_t a = 0; a < sizeof shifts / sizeof *shifts; a++) {
            roundtrip(link, sizes[s], shifts[a]);
        }
    }
    link->ops->stats(link, &stats);
    CHECK(stats.busy_out > 0 && stats.busy_in > 0 && stats.slot_bytes == 0);
    CHECK(20 * stats.tier_bytes <= 21 * stats.slot_peak);
    CHECK(direct || stats.page_cache);
    link->ops->close(link);
}

static void test_threads(bool direct) {
    gnn_link *link = open_link(64 * MIB, direct);
    hammer(link, 20);
    link->ops->close(link);
}

/* Many slots alive at once keep their own bytes. */
static void test_many(bool direct) {
    enum { SLOTS = 40 };
    gnn_link *link = open_link(64 * MIB, direct);
    gnn_slot slots[SLOTS];
    gnn_ticket puts[SLOTS], gets[SLOTS];
    char *near[SLOTS];
    int64_t bytes = 300007;
    for (int s = 0; s < SLOTS; s++) {
        near[s] = malloc((size_t)bytes);
        fill(near[s], bytes, (uint32_t)s);
        CHECK(link->ops->slot_alloc(link, bytes, &slots[s]) == GNN_OK);
        CHECK(link->ops->put(link, slots[s], near[s], 0, &puts[s]) == GNN_OK);
    }
    for (int s = 0; s < SLOTS; s++) {
        finish(link, puts[s]);
        memset(near[s], 0, (size_t)bytes);
    }
    for (int s = SLOTS - 1; s >= 0; s--) {
        CHECK(link->ops->get(link, slots[s], near[s], 0, 0, &gets[s]) == GNN_OK);
    }
    char *expected = malloc((size_t)bytes);
    for (int s = 0; s < SLOTS; s++) {
        finish(link, gets[s]);
        fill(expected, bytes, (uint32_t)s);
        CHECK(memcmp(near[s], expected, (size_t)bytes) == 0);
        free(near[s]);
    }
    free(expected);
    link->ops->close(link);
}

static void refuse(const char *directory, const char *why) {
    gnn_link_file_options options = {.directory = directory, .limit = MIB};
    gnn_link *link;
    CHECK(gnn_link_file_open(&options, &link) == GNN_EIO);
    CHECK(strstr(gnn_message(), directory) && strstr(gnn_message(), why));
}

/* Refusals that root would not meet, as somebody else. */
static int refuse_as_nobody(const char *directory) {
    if (geteuid() == 0 && setuid(65534)) {
        return 1;
    }
    refuse(directory, "is not writable: Permission denied");
    return 0;
}

static void test_directories(void) {
    char made[] = "/var/tmp/test_link_XXXXXX";
    int status = 0;
    refuse("/nope", "does not exist");
    refuse("/etc/passwd", "is not a directory");
    refuse("/proc", "is not writable");
    CHECK(mkdtemp(made) && !chmod(made, 0555));
    pid_t child = fork();
    if (child == 0) {
        _exit(refuse_as_nobody(made));
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(!rmdir(made));
    gnn_link_file_options none = {.directory = disk, .limit = -1};
    gnn_link *link;
    gnn_slot slot;
    CHECK(gnn_link_file_open(&none, &link) == GNN_EINVAL);
    none.limit = 0; // a disk with no space left: opens, and is always full
    CHECK(gnn_link_file_open(&none, &link) == GNN_OK);
    CHECK(link->ops->slot_alloc(link, 1, &slot) == GNN_EFULL);
    link->ops->close(link);
}

/* Memory-backed only when asked for; tmpfs takes the direct flag and ignores it,
 * which the trial finds out. */
static void test_memory_backed(void) {
    if (access("/dev/shm", W_OK)) {
        return; // not on this machine
    }
    refuse("/dev/shm", "is on tmpfs, which keeps files in memory");
    gnn_link_file_options shm = {"/dev/shm", MIB, 1, true, true};
    gnn_link *link;
    gnn_link_stats stats;
    CHECK(gnn_link_file_open(&shm, &link) == GNN_OK);
    roundtrip(link, 12345, 1);
    link->ops->stats(link, &stats);
    CHECK(stats.page_cache == 1);
    link->ops->close(link);
}

static int count_entries(const char *directory) {
    DIR *listing = opendir(directory);
    int n = 0;
    CHECK(listing);
    while (readdir(listing)) {
        n++;
    }
    closedir(listing);
    return n;
}

/* While it is open the directory is empty, and nobody else may open the file. */
static void test_unnamed(void) {
    char made[] = "/var/tmp/test_link_XXXXXX", path[64];
    struct stat info;
    CHECK(mkdtemp(made));
    gnn_link_file_options options = {.directory = made, .limit = MIB};
    gnn_link *link;
    int first = dup(0); // the link takes the next descriptors, in order
    CHECK(gnn_link_file_open(&options, &link) == GNN_OK);
    CHECK(count_entries(made) == 2);
    int found = 0;
    for (int fd = first + 1; fd < first + 8; fd++) {
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        if (!stat(path, &info) && S_ISREG(info.st_mode) && info.st_nlink == 0) {
            CHECK((info.st_mode & 0777) == 0600);
            found++;
        }
    }
    CHECK(found == 1);
    link->ops->close(link);
    close(first);
    CHECK(!rmdir(made));
}

/* Two slots never share a page that would have to be dropped for one of them. */
static void test_slots_are_whole_pages(void) {
    const int64_t page = sysconf(_SC_PAGESIZE);
    gnn_link_file_options options = {disk, 64 * MIB, 2, false, false};
    gnn_link *link;
    gnn_slot a, b;
    CHECK(gnn_link_file_open(&options, &link) == GNN_OK);
    CHECK(link->ops->slot_alloc(link, 1, &a) == GNN_OK);
    CHECK(link->ops->slot_alloc(link, page + 1, &b) == GNN_OK);
    CHECK(a.offset % page == 0 && b.offset % page == 0 && b.offset != a.offset);
    link->ops->close(link);
}

/* What was moved out, and read back, is not in memory as page cache either. */
static void test_page_cache(bool direct) {
    enum { PAGES = 2048 };
    static unsigned char resident[PAGES];
    gnn_link *link = open_link(64 * MIB, direct);
    char *near = malloc(8 * (size_t)MIB);
    gnn_slot slot;
    gnn_ticket ticket;
    fill(near, 8 * MIB, 1);
    CHECK(link->ops->slot_alloc(link, 8 * MIB, &slot) == GNN_OK && slot.offset == 0);
    void *view =
        mmap(NULL, 8 * (size_t)MIB, PROT_READ, MAP_SHARED, spill_descriptor(), 0);
    CHECK(view != MAP_FAILED);
    for (int out = 1; out >= 0; out--) {
        gnn_status status = out ? link->ops->put(link, slot, near, 0, &ticket)
                                : link->ops->get(link, slot, near, 0, 0, &ticket);
        CHECK(status == GNN_OK);
        finish(link, ticket);
        int cached = 0;
        CHECK(!mincore(view, 8 * (size_t)MIB, resident));
        for (int p = 0; p < PAGES; p++) {
            cached += resident[p] & 1;
        }
        CHECK(cached <= PAGES / 20);
    }
    munmap(view, 8 * (size_t)MIB);
    link->ops->close(link);
    free(near);
}

static void test_limit(void) {
    gnn_link *link = open_link(3 * MIB, true);
    gnn_slot slot;
    gnn_link_stats stats;
    CHECK(link->ops->slot_alloc(link, 2 * MIB, &slot) == GNN_OK);
    CHECK(link->ops->slot_alloc(link, MIB - 4096, &slot) == GNN_OK);
    link->ops->stats(link, &stats);
    CHECK(stats.tier_bytes <= 3 * MIB); // growing ahead of need stops there
    CHECK(link->ops->slot_alloc(link, 4096, &slot) == GNN_OK);
    CHECK(link->ops->slot_alloc(link, 1, &slot) == GNN_EFULL);
    link->ops->close(link);
}

/* A file-size limit stands for a full disk: the first slots fit, then the tier says
 * full, and goes on working; a freed slot is used again. */
static void test_full(bool direct) {
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit old, small = {8 << 20, RLIM_INFINITY};
    CHECK(!getrlimit(RLIMIT_FSIZE, &old));
    small.rlim_max = old.rlim_max;
    gnn_link *link = open_link(64 * MIB, direct);
    CHECK(!setrlimit(RLIMIT_FSIZE, &small));
    gnn_slot slots[16];
    int n = 0;
    gnn_status status = GNN_OK;
    while (n < 16 && status == GNN_OK) {
        status = link->ops->slot_alloc(link, MIB, &slots[n]);
        n += status == GNN_OK;
    }
    CHECK(status == GNN_EFULL && n == 8 && strstr(gnn_message(), disk));
    CHECK(link->ops->slot_free(link, slots[3]) == GNN_OK);
    roundtrip(link, MIB, 1);
    CHECK(link->ops->slot_alloc(link, 4096, &slots[3]) == GNN_OK);
    CHECK(!setrlimit(RLIMIT_FSIZE, &old));
    CHECK(link->ops->slot_alloc(link, 4 * MIB, &slots[8]) == GNN_OK);
    link->ops->close(link);
}

static void test_fork_and_close(void) {
    gnn_link *link = open_link(256 * MIB, true);
    char *near = calloc(64, (size_t)MIB);
    gnn_slot slot = {0, 0};
    gnn_ticket put = 0, get;
    for (int i = 0; i < 8; i++) {
        CHECK(link->ops->slot_alloc(link, 8 * MIB, &slot) == GNN_OK);
        CHECK(link->ops->put(link, slot, near + 8 * i * MIB, 0, &put) == GNN_OK);
    }
    check_child(link, slot, put); // with copies in flight
    CHECK(link->ops->get(link, slot, near, 0, put, &get) == GNN_OK);
    link->ops->close(link); // with copies in flight
    free(near);
}

static void test_measure(void) {
    gnn_link *link = open_link(64 * MIB, true);
    double out = 0, in = 0;
    gnn_link_stats stats;
    CHECK(link->ops->measure(link, 64 * MIB, &out, &in) == GNN_OK && out > 0 && in > 0);
    link->ops->stats(link, &stats);
    CHECK(stats.copies_out == 0 && stats.busy_in == 0 && stats.slot_bytes == 0);
    link->ops->close(link);
}

int main(void) {
    for (int direct = 0; direct < 2; direct++) {
        test_sizes(direct);
        test_threads(direct);
        test_many(direct);
        test_full(direct);
        test_page_cache(direct);
        test_slots_are_whole_pages();
    }
    test_limit();
    test_directories();
    test_memory_backed();
    test_unnamed();
    test_fork_and_close();
    test_measure();
    printf("test_link_file: ok\n");
    return 0;
}
