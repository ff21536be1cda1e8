/* test_cpu_isa.c: the environment forces an instruction set, and a wrong name is an
 * error of every op, with the names that would have worked. */
#include "cpu/isa.h"
#include "kernel_checks.h"

int main(void) {
    const int64_t rowptr[] = {0};
    const gnn_spmm_args spmm = {.a = {.rowptr = rowptr}, .n_features = 1};
    const gnn_sddmm_args sddmm = {.a = {.rowptr = rowptr}, .n_features = 1};
    setenv("GNNOFFLOAD_ISA", "banana", 1);
    CHECK(gnn_spmm_cpu(&spmm) == GNN_EINVAL, "%s", gnn_message());
    CHECK(gnn_sddmm_cpu(&sddmm) == GNN_EINVAL, "%s", gnn_message());
    const char *begin = "GNNOFFLOAD_ISA: must be one of ", *end = " here, got banana";
    const char *text = gnn_message();
    CHECK(strncmp(text, begin, strlen(begin)) == 0, "%s", text);
    CHECK(strcmp(text + strlen(text) - strlen(end), end) == 0, "%s", text);
    const char *plain = gnn_isa_name((gnn_isa)(GNN_ISA_COUNT - 1));
    CHECK(strstr(text, plain) != NULL, "%s does not offer %s", text, plain);
    CHECK(strcmp(gnn_isa_text(), "none") == 0, "%s", gnn_isa_text());

    setenv("GNNOFFLOAD_ISA", plain, 1); // every machine has the last of the table
    CHECK(strcmp(gnn_isa_text(), plain) == 0, "%s", gnn_isa_text());
    CHECK_OK(gnn_spmm_cpu(&spmm));
    setenv("GNNOFFLOAD_ISA", "banana", 1); // too late: it is picked once
    CHECK_OK(gnn_spmm_cpu(&spmm));
    CHECK(gnn_isa_set(GNN_ISA_COUNT) == GNN_ENOTSUP, "%s", gnn_message());
    return 0;
}
