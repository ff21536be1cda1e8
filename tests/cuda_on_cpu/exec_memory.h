/* exec_memory.h: what a kernel may touch. Global memory is what a test has registered,
 * by name and exact size; shared memory belongs to the executor.
 */
#ifndef EXEC_MEMORY_H
#define EXEC_MEMORY_H

#include <cstdint>
#include <map>
#include <string>

namespace exec {

/* Who accessed a cell last, and when: see exec_hooks.cpp. */
struct Stamp {
    uint32_t block; // serial number; 0: nobody
    uint32_t who : 12, clock : 20;
};
struct Cell { // of two bytes, or of one: Region::cells_of_bytes
    Stamp written, read;
    uint32_t lanes; // of the reading warp, when several lanes of one have read
};

enum Kind {
    INPUT,  // may be read
    OUTPUT, // may be written, and read once it was written
    SHARED, // as OUTPUT, anew for each block
    FREED,
};

struct Region {
    uintptr_t begin, end;
    std::string name;
    Kind kind;
    Cell *cells = nullptr; // made at the first access that needs them
    size_t cell_bytes = 0;
    unsigned cell_shift = 1;                           // a cell has 1 << shift bytes
    int64_t sectors[2] = {0, 0}, requests[2] = {0, 0}; // read, written (exec_hooks.cpp)

    size_t size() const {
        return end - begin;
    }
    Cell *cells_at(uintptr_t address);
    void cells_of_bytes(); // for good: threads write single bytes here
    void forget_cells();
};
extern std::map<uintptr_t, Region> regions; // by begin

Region *region_of(uintptr_t address); // that holds it, or NULL
std::string
describe(uintptr_t address); // "x + 8", "8 bytes past the end of x [64 bytes]"
bool is_constant(uintptr_t address, size_t bytes); // kernel arguments, constant tables

} // namespace exec

#endif
