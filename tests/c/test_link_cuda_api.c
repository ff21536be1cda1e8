/* test_link_cuda_api.c: the four ways of having no CUDA are told apart, and the
 * empty table refuses every call with the reason. */
#include "link_checks.h"
#include "offload/cuda_api.h"

static void test_judgement(void) {
    CHECK(gnn_cuda_judge(0, 13000, 1) == GNN_CUDA_NOT_BUILT);
    CHECK(gnn_cuda_judge(13000, 0, 0) == GNN_CUDA_NO_DRIVER);
    CHECK(gnn_cuda_judge(13000, 12080, 1) == GNN_CUDA_DRIVER_TOO_OLD);
    CHECK(gnn_cuda_judge(13000, 12080, 0) == GNN_CUDA_DRIVER_TOO_OLD);
    CHECK(gnn_cuda_judge(13020, 13000, 1) == GNN_CUDA_PRESENT); // same major version
    CHECK(gnn_cuda_judge(12060, 13000, 2) == GNN_CUDA_PRESENT);
    CHECK(gnn_cuda_judge(13000, 13000, 0) == GNN_CUDA_NO_DEVICE);
}

static void test_texts(void) {
    char text[200];
    gnn_cuda_absence_text(GNN_CUDA_DRIVER_TOO_OLD, 13000, 12080, text, sizeof text);
    CHECK(!strcmp(text,
                  "the NVIDIA driver is too old: it serves CUDA 12.8, this gnnoffload "
                  "was built with CUDA 13.0"));
    gnn_cuda_absence_text(GNN_CUDA_NO_DEVICE, 13000, 13000, text, sizeof text);
    CHECK(strstr(text, "shows no GPU") && !strstr(text, "old"));
    gnn_cuda_absence_text(GNN_CUDA_PRESENT, 13000, 13000, text, sizeof text);
    CHECK(!*text);
}

static void test_empty_table(void) {
    const gnn_cuda_api *api = gnn_cuda_api_none(GNN_CUDA_NO_DRIVER, 0);
    void *memory;
    gnn_cuda_event event;
    gnn_cuda_stream stream;
    /* Entries in the wrong order would not compile (types) or name another call. */
    CHECK(api->host_alloc(0, 4096, &memory) == GNN_EDEVICE);
    CHECK(!strcmp(gnn_message(),
                  "cuda: host_alloc: no NVIDIA driver was found on this machine"));
    CHECK(api->event_create(0, false, &event) == GNN_EDEVICE);
    CHECK(strstr(gnn_message(), "event_create"));
    CHECK(api->stream_create(0, false, &stream) == GNN_EDEVICE);
    CHECK(strstr(gnn_message(), "stream_create"));
    CHECK(api->copy_in(0, NULL, NULL, 1, 0) == GNN_EDEVICE);
    CHECK(strstr(gnn_message(), "copy_in"));
    CHECK(api->stream_destroy(0, 0) == GNN_EDEVICE);
    CHECK(strstr(gnn_message(), "stream_destroy"));
    CHECK(api->host_unregister(0, NULL) == GNN_EDEVICE);
    CHECK(strstr(gnn_message(), "host_unregister"));
    void *const *entries = (void *const *)api; // every entry is there
    for (size_t e = 0; e < sizeof *api / sizeof *entries; e++) {
        CHECK(entries[e]);
    }
}

int main(void) {
    test_judgement();
    test_texts();
    test_empty_table();
    printf("test_link_cuda_api: ok\n");
    return 0;
}
