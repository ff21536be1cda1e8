/* test_status.c: the status map and the thread-local message. */
#include "gnn.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define CHECK(condition)                                                               \
    do {                                                                               \
        if (!(condition)) {                                                            \
            printf("%s:%d: %s\n", __FILE__, __LINE__, #condition);                     \
            return 1;                                                                  \
        }                                                                              \
    } while (0)

static void *other_thread(void *argument) {
    (void)argument;
    return gnn_last_status() == GNN_OK && gnn_message()[0] == '\0' ? NULL : "not empty";
}

static gnn_status require_rows(long long got) {
    GNN_REQUIRE(got == 7, GNN_EINVAL, "spmm: x must have 7 rows, got %lld", got);
    return GNN_OK;
}

static gnn_status try_rows(long long got) {
    GNN_TRY(require_rows(got));
    return GNN_ENOTSUP;
}

int main(void) {
    CHECK(strcmp(gnn_message(), "") == 0);
    CHECK(try_rows(7) == GNN_ENOTSUP);
    CHECK(try_rows(5) == GNN_EINVAL);
    CHECK(gnn_last_status() == GNN_EINVAL);
    CHECK(strcmp(gnn_message(), "spmm: x must have 7 rows, got 5") == 0);

    pthread_t thread;
    void *verdict;
    CHECK(pthread_create(&thread, NULL, other_thread, NULL) == 0);
    CHECK(pthread_join(thread, &verdict) == 0 && verdict == NULL);

    char longer[2000];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    CHECK(gnn_fail(GNN_EIO, "%s", longer) == GNN_EIO);
    CHECK(strlen(gnn_message()) < sizeof longer);

    CHECK(strcmp(gnn_status_text(GNN_EGRAPH), "malformed graph") == 0);
    CHECK(strcmp(gnn_status_exception(GNN_EGRAPH), "GraphError") == 0);
    CHECK(gnn_status_exception(GNN_OK) == NULL);
    CHECK(strcmp(gnn_status_text((gnn_status)99), "unknown status") == 0);
    CHECK(gnn_dtype_size(GNN_BF16) == 2 && gnn_dtype_size(GNN_F64) == 8);
    CHECK(strcmp(gnn_dtype_text(GNN_F16), "float16") == 0);
    CHECK(gnn_build_facts().compiler[0] != '\0');
    return 0;
}
