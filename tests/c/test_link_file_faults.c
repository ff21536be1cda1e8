/* test_link_file_faults.c: system calls that fail, stop short or are not there. A
 * transfer that can go on goes on; one that cannot ends with a status and a text,
 * and its bytes are never taken for good.
 * law: 9 */
#include "link_checks.h"
#include "offload/file_faults.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

static const char *const disk = "/var/tmp";

static gnn_link *open_link(bool direct) {
    gnn_link_file_options options = {disk, 64 * MIB, 2, false, direct};
    gnn_link *link;
    CHECK(gnn_link_file_open(&options, &link) == GNN_OK);
    return link;
}

static void arm(const char *call, int error, int64_t after, int64_t times) {
    gnn_file_fault fault = {call, error, after, times};
    CHECK(gnn_file_fault_set(&fault) == GNN_OK);
}

static void disarm(void) {
    CHECK(gnn_file_fault_hits() > 0); // the fault was met
    CHECK(gnn_file_fault_set(NULL) == GNN_OK);
}

/* Short transfers, interruptions and "try again" are gone through. */
static void test_goes_on(bool direct) {
    static const int errors[] = {0, EINTR, EAGAIN};
    static const char *const calls[] = {"pwrite", "pread"};
    gnn_link *link = open_link(direct);
    for (size_t e = 0; e < sizeof errors / sizeof *errors; e++) {
        for (size_t c = 0; c < 2; c++) {
            for (int64_t after = 0; after <= 3; after += 3) {
                arm(calls[c], errors[e], after, 5);
                roundtrip(link, 5 * MIB + 77, 3);
                roundtrip(link, 5 * MIB + 77, 0);
                disarm();
            }
        }
    }
    link->ops->close(link);
}

typedef struct copies {
    gnn_slot slot;
    char *near;
    gnn_status put, get;
    char text[512];
} copies;

/* One copy out and, when that went well, back; how each ended, and the last text. */
static copies try_copies(gnn_link *link, const char *call, int error, int64_t times) {
    copies c = {.near = calloc(1, 5 * (size_t)MIB)};
    gnn_ticket ticket;
    CHECK(link->ops->slot_alloc(link, 5 * MIB, &c.slot) == GNN_OK);
    arm(call, error, 1, times);
    CHECK(link->ops->put(link, c.slot, c.near, 0, &ticket) == GNN_OK);
    c.put = link->ops->wait(link, ticket);
    link->ops->ticket_free(link, ticket);
    if (c.put == GNN_OK) {
        CHECK(link->ops->get(link, c.slot, c.near, 0, 0, &ticket) == GNN_OK);
        c.get = link->ops->wait(link, ticket);
        link->ops->ticket_free(link, ticket);
    }
    snprintf(c.text, sizeof c.text, "%s", gnn_message());
    disarm();
    CHECK(link->ops->slot_free(link, c.slot) == GNN_OK);
    free(c.near);
    return c;
}

static void test_fails(bool direct) {
    gnn_link *link = open_link(direct);
    copies c = try_copies(link, "pwrite", EIO, 1);
    CHECK(c.put == GNN_EIO && strstr(c.text, disk) && strstr(c.text, strerror(EIO)));
    c = try_copies(link, "pwrite", ENOSPC, -1);
    CHECK(c.put == GNN_EFULL && strstr(c.text, strerror(ENOSPC)));
    c = try_copies(link, "pwrite", EFBIG, 1);
    CHECK(c.put == GNN_EFULL);
    c = try_copies(link, "pwrite", EDQUOT, 1);
    CHECK(c.put == GNN_EFULL);
    c = try_copies(link, "pread", EIO, 1);
    CHECK(c.put == GNN_OK && c.get == GNN_EIO && strstr(c.text, "reading"));
    if (!direct) {
        c = try_copies(link, "sync_file_range", EIO, 1);
        CHECK(c.put == GNN_EIO && strstr(c.text, "writing back"));
        c = try_copies(link, "sync_file_range", ENOSYS, -1); // whole file instead
        CHECK(c.put == GNN_OK && c.get == GNN_OK);
    }
    roundtrip(link, 5 * MIB, 0); // the link still works
    link->ops->close(link);
}

static void test_growth(void) {
    gnn_link *link = open_link(true);
    gnn_slot slot;
    arm("fallocate", ENOSPC, 0, -1);
    CHECK(link->ops->slot_alloc(link, MIB, &slot) == GNN_EFULL);
    CHECK(strstr(gnn_message(), "reserving") &&
          strstr(gnn_message(), strerror(ENOSPC)));
    disarm();
    arm("fallocate", EIO, 0, -1);
    CHECK(link->ops->slot_alloc(link, MIB, &slot) == GNN_EIO);
    disarm();
    arm("fallocate", EINTR, 0, 3);
    CHECK(link->ops->slot_alloc(link, MIB, &slot) == GNN_OK);
    CHECK(link->ops->slot_free(link, slot) == GNN_OK);
    disarm();
    arm("fallocate", EOPNOTSUPP, 0, -1); // then the file grows without reserving
    roundtrip(link, 9 * MIB, 1);
    disarm();
    link->ops->close(link);
}

/* Without O_TMPFILE the file has a name for an instant; nothing may be left of it. */
static void test_opening(void) {
    char made[] = "/var/tmp/test_link_XXXXXX";
    CHECK(mkdtemp(made));
    gnn_link_file_options options = {
        .directory = made, .limit = 64 * MIB, .direct = true};
    gnn_link *link;
    arm("openat", EOPNOTSUPP, 0, 1);
    CHECK(gnn_link_file_open(&options, &link) == GNN_OK);
    disarm();
    CHECK(!rmdir(made)); // empty while the link is open
    roundtrip(link, 3 * MIB, 1);
    link->ops->close(link);
    options.directory = disk;
    arm("openat", ENOSPC, 0, -1);
    CHECK(gnn_link_file_open(&options, &link) == GNN_EFULL);
    disarm();
    arm("openat", EROFS, 0, -1);
    CHECK(gnn_link_file_open(&options, &link) == GNN_EIO);
    CHECK(strstr(gnn_message(), "is not writable: Read-only file system"));
    disarm();
}

/* Direct I/O that is accepted at open and refused at the first write is not used. */
static void test_direct_refused(void) {
    const char *file_system;
    bool direct;
    arm("pwrite", EINVAL, 0, 1);
    gnn_link *link = open_link(true);
    disarm();
    gnn_link_file_info(link, &file_system, &direct);
    CHECK(!direct && *file_system);
    gnn_slot slots[2]; // through the page cache they are whole pages
    for (int s = 0; s < 2; s++) {
        CHECK(link->ops->slot_alloc(link, 1, &slots[s]) == GNN_OK);
        CHECK(slots[s].offset % sysconf(_SC_PAGESIZE) == 0);
    }
    roundtrip(link, 3 * MIB + 5, 1);
    link->ops->close(link);
}

/* Somebody cuts the file: what was on it is gone, and is said to be gone, also when
 * a later write has made the file long again. */
static void test_truncated(bool direct, bool grown_again) {
    gnn_link *link = open_link(direct);
    char *near = malloc(5 * (size_t)MIB);
    gnn_slot first, second;
    gnn_ticket ticket;
    fill(near, 5 * MIB, 1);
    CHECK(link->ops->slot_alloc(link, 5 * MIB, &first) == GNN_OK);
    CHECK(link->ops->slot_alloc(link, MIB, &second) == GNN_OK);
    CHECK(link->ops->put(link, first, near, 0, &ticket) == GNN_OK);
    finish(link, ticket);
    CHECK(!ftruncate(spill_descriptor(), 3 * MIB + 100));
    if (grown_again) {
        CHECK(link->ops->put(link, second, near, 0, &ticket) == GNN_OK);
        finish(link, ticket);
    }
    CHECK(link->ops->get(link, first, near, 0, 0, &ticket) == GNN_OK);
    CHECK(link->ops->wait(link, ticket) == GNN_EIO);
    CHECK(strstr(gnn_message(), grown_again ? "not what was written" : "truncated"));
    link->ops->ticket_free(link, ticket);
    link->ops->close(link);
    free(near);
}

int main(void) {
    for (int direct = 0; direct < 2; direct++) {
        test_goes_on(direct);
        test_fails(direct);
        test_truncated(direct, false);
        test_truncated(direct, true);
    }
    test_growth();
    test_opening();
    test_direct_refused();
    printf("test_link_file_faults: ok\n");
    return 0;
}
