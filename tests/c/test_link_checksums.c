/* test_link_checksums.c: the sum sees each bit, each swap and the length. */
#include "link_checks.h"
#include "offload/checksums.h"

static void test_every_bit(int64_t count) {
    char bytes[400];
    fill(bytes, count, 5);
    uint64_t sum = gnn_checksum(bytes, count);
    CHECK(sum && sum == gnn_checksum(bytes, count));
    for (int64_t bit = 0; bit < 8 * count; bit++) {
        bytes[bit / 8] = (char)(bytes[bit / 8] ^ 1 << bit % 8);
        CHECK(gnn_checksum(bytes, count) != sum);
        bytes[bit / 8] = (char)(bytes[bit / 8] ^ 1 << bit % 8);
    }
    memset(bytes, 0, (size_t)count);
    CHECK(gnn_checksum(bytes, count) != sum);
}

static void test_swaps_and_lengths(void) {
    char bytes[400] = {0};
    uint64_t first = 0;
    for (int at = 0; at < 392; at++) { // one byte in a sea of zeros, at each place
        bytes[at] = 1;
        uint64_t sum = gnn_checksum(bytes, 400);
        bytes[at] = 0;
        bytes[at + 8] = 1;
        CHECK(sum != first && sum != gnn_checksum(bytes, 400));
        bytes[at + 8] = 0;
        first = at == 0 ? sum : first;
    }
    for (int64_t at = 0; at + 72 <= 400; at += 8) { // two words 64 bytes apart swapped
        char word[8];
        fill(bytes, 400, 6);
        uint64_t sum = gnn_checksum(bytes, 400);
        memcpy(word, bytes + at, 8);
        memcpy(bytes + at, bytes + at + 64, 8);
        memcpy(bytes + at + 64, word, 8);
        CHECK(gnn_checksum(bytes, 400) != sum);
    }
    for (int64_t count = 1; count < 400; count++) {
        CHECK(gnn_checksum(bytes, count) != gnn_checksum(bytes, count + 1));
    }
}

static void test_places(void) {
    gnn_checksums sums;
    int64_t far = (int64_t)1 << 30;
    CHECK(gnn_checksums_init(&sums, (int64_t)1 << 44) == GNN_OK);
    CHECK(gnn_checksums_grow(&sums, 4096) == GNN_OK);
    *gnn_checksum_at(&sums, 0) = 7;
    CHECK(gnn_checksums_grow(&sums, far + 4096) == GNN_OK); // skips regions
    *gnn_checksum_at(&sums, far) = 8;
    *gnn_checksum_at(&sums, far / 2) = 9;
    CHECK(*gnn_checksum_at(&sums, 0) == 7 && *gnn_checksum_at(&sums, far) == 8);
    CHECK(*gnn_checksum_at(&sums, far / 2) == 9 && *gnn_checksum_at(&sums, 4096) == 0);
    gnn_checksums_clear(&sums);
}

int main(void) {
    for (int64_t count = 1; count <= 400; count += count < 20 ? 1 : 19) {
        test_every_bit(count);
    }
    test_swaps_and_lengths();
    test_places();
    printf("test_link_checksums: ok\n");
    return 0;
}
