/* page_size.c: lets a C test run as on a machine with larger pages: GNN_TEST_PAGE bytes
 * instead of this machine's. Linked into every C test with -Wl,--wrap=sysconf. */
#include <stdlib.h>
#include <unistd.h>

long __real_sysconf(int name);
long __wrap_sysconf(int name);

long __wrap_sysconf(int name) {
    const char *page = getenv("GNN_TEST_PAGE");
    if (name == _SC_PAGESIZE && page != NULL && page[0] != '\0') {
        return atol(page);
    }
    return __real_sysconf(name);
}
