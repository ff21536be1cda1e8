/* torch_memory.cpp: CPU tensors out of the simulator's caching allocator.
 *
 * While it is on, every CPU tensor that torch makes is a block of the simulated device,
 * with the current stream as its home, and goes back when its storage dies: so tensors
 * are freed and reused as CUDA tensors are, while copies of them may still be queued.
 */
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include <atomic>
#include <cstring>

using Alloc = void *(*)(int, int64_t, uint64_t);
using Free = void (*)(void *);

static Alloc sim_alloc;
static Free sim_free;
static std::atomic<bool> on{false};
static std::atomic<uint64_t> stream{0}, generation{0};

struct Block {
    void *memory;
    uint64_t generation; // of the machine it came from
};

static void give_back(void *context) {
    Block *block = static_cast<Block *>(context);
    if (block->generation == generation) {
        sim_free(block->memory);
    }
    delete block;
}

struct SimAllocator final : c10::Allocator {
    c10::DataPtr allocate(size_t bytes) override {
        if (!on || bytes == 0) {
            return c10::GetDefaultCPUAllocator()->allocate(bytes);
        }
        void *memory = sim_alloc(0, static_cast<int64_t>(bytes), stream);
        TORCH_CHECK_WITH(OutOfMemoryError, memory, "simulated device: no ", bytes,
                         " bytes");
        Block *block = new Block{memory, generation};
        return {memory, block, &give_back, c10::Device(c10::DeviceType::CPU)};
    }
    void copy_data(void *to, const void *from, std::size_t bytes) const override {
        memcpy(to, from, bytes);
    }
};

extern "C" {

void torch_memory_install(Alloc alloc, Free give) {
    sim_alloc = alloc;
    sim_free = give;
}

/* A new machine: what is alive belongs to none any more. Off, torch has its own allocator
 * back: some of its ops (oneDNN's GELU) want the raw interface, which ours lacks. */
void torch_memory_switch(int is_on) {
    static SimAllocator allocator;
    generation++;
    on = is_on != 0;
    c10::SetCPUAllocator(on ? &allocator : c10::GetDefaultCPUAllocator(), 100);
}

void torch_memory_stream(uint64_t current) {
    stream = current;
}

uint64_t torch_memory_current(void) {
    return stream;
}
}
