#include "simulator.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <new>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace simulator {

namespace {

enum class Order : int { kForward, kReverse, kRandom };
enum class State { kReady, kAtBarrier, kInWarp, kDone };

constexpr unsigned kWarp = 32;
constexpr size_t kStack = 256 << 10;

// What a test sets, and what it reads back.
struct Settings {
    Order order = Order::kForward;
    std::mt19937 random{1};
    int fail_launch = -1;      // which launch from now on fails, counted from 0; none if negative
    unsigned first_block = 0;  // blocks before it are left out: to test offsets beyond what fits into memory
    bool dry = false;          // launches are noted and not made
} settings;

struct Record {
    std::string name;
    unsigned blocks;
    int threads;
    size_t shared_bytes;
};

struct Counts {
    uint64_t read = 0, written = 0;
    std::vector<Record> launches;
    int error = 0;
} counts;

}  // namespace

// One CUDA thread, a fiber.
struct Thread {
    uint3 index{};
    State state = State::kReady;
    ucontext_t context{};
    void* stack = nullptr;
    int barrier_line = 0;        // while at a barrier
    unsigned mask = 0;           // while in a warp function: whom it waits for,
    unsigned source = 0;         // from whom it takes a value,
    uint64_t value = 0;          // the value it gives, and afterwards the one it took
    const void* kind = nullptr;  // of a function that the warp computes together
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack = nullptr;
#endif
};

namespace {

// Memory as a launch gives it, aligned as fragments of matrices need it.
constexpr std::align_val_t kAlignment{32};
struct FreeAligned {
    void operator()(char* memory) const { ::operator delete[](memory, kAlignment); }
};
using AlignedArray = std::unique_ptr<char[], FreeAligned>;

// The block that runs, and the scheduler's own context.
struct Block {
    uint3 index{}, dim{};
    std::vector<Thread> threads;
    Thread* current = nullptr;
    ucontext_t scheduler{};
    const std::function<void()>* body = nullptr;
    std::string error;
    // Shared arrays by declaration. Each is a heap block of its own, so that AddressSanitizer sees its bounds.
    std::vector<std::pair<const void*, std::unique_ptr<char[]>>> arrays;
    AlignedArray dynamic{nullptr};
#if defined(__SANITIZE_ADDRESS__)
    const void* scheduler_stack = nullptr;
    size_t scheduler_stack_size = 0;
#endif
} block;

// Stacks are kept: to map one costs more than most threads' work.
std::vector<void*> stacks;

void* stack_of(size_t thread) {
    while (stacks.size() <= thread) {
        void* memory =
            mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) throw std::bad_alloc();
        stacks.push_back(memory);
    }
    return stacks[thread];
}

// Switches between the scheduler and threads. AddressSanitizer has to be told of every change of stack.
void switch_to(Thread& thread) {
    block.current = &thread;
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, thread.stack, kStack);
#endif
    swapcontext(&block.scheduler, &thread.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void switch_to_scheduler(Thread& thread, bool for_good) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(for_good ? nullptr : &thread.fake_stack, block.scheduler_stack,
                                   block.scheduler_stack_size);
#endif
    if (for_good) {
        setcontext(&block.scheduler);
    } else {
        swapcontext(&thread.context, &block.scheduler);
    }
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(thread.fake_stack, nullptr, nullptr);
#endif
}

void thread_main() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &block.scheduler_stack, &block.scheduler_stack_size);
#endif
    (*block.body)();
    block.current->state = State::kDone;
    switch_to_scheduler(*block.current, true);
}

template <typename T>
void arrange(std::vector<T>& items) {
    if (settings.order == Order::kReverse) std::reverse(items.begin(), items.end());
    if (settings.order == Order::kRandom) std::shuffle(items.begin(), items.end(), settings.random);
}

unsigned lane_of(const Thread& thread) {
    return thread.index.x % kWarp;
}

// Whether a lane has called the warp function that `thread` waits in.
bool waits_with(const Thread& thread, const Thread* lane, const Thread* end) {
    return lane < end && lane->state == State::kInWarp && lane->mask == thread.mask && lane->kind == thread.kind;
}

// If all lanes that the warp function of `thread` names have called it, lets them go on with their values.
void finish_exchange(Thread& thread) {
    Thread* const warp = &thread - lane_of(thread);
    const Thread* const end = block.threads.data() + block.threads.size();
    for (unsigned lane = 0; lane < kWarp; ++lane) {
        if (!(thread.mask >> lane & 1)) continue;
        if (!waits_with(thread, warp + lane, end)) return;
    }
    const unsigned mask = thread.mask;
    uint64_t taken[kWarp] = {};
    for (unsigned lane = 0; lane < kWarp; ++lane) {
        if (mask >> lane & 1) taken[lane] = warp[warp[lane].source].value;
    }
    for (unsigned lane = 0; lane < kWarp; ++lane) {
        if (!(mask >> lane & 1)) continue;
        warp[lane].value = taken[lane];
        warp[lane].state = State::kReady;
    }
}

// When no thread can run: lets the block pass its barrier, or says why it may not.
void finish_barrier() {
    const Thread* waiting = nullptr;
    const Thread* elsewhere = nullptr;
    for (const Thread& thread : block.threads) {
        if (thread.state == State::kInWarp) {
            block.error = "a warp function waits for lanes that never call it";
            return;
        }
        if (thread.state == State::kAtBarrier) {
            if (waiting != nullptr && waiting->barrier_line != thread.barrier_line) {
                block.error = "threads of a block wait at different barriers, in lines " +
                              std::to_string(waiting->barrier_line) + " and " + std::to_string(thread.barrier_line);
                return;
            }
            waiting = &thread;
        } else {
            elsewhere = &thread;
        }
    }
    if (elsewhere != nullptr) {
        block.error = "the barrier in line " + std::to_string(waiting->barrier_line) + " is not reached by all threads";
        return;
    }
    for (Thread& thread : block.threads) thread.state = State::kReady;
}

void run_block(unsigned index, size_t shared_bytes) {
    block.index = {index, 0, 0};
    block.arrays.clear();
    block.dynamic.reset(static_cast<char*>(::operator new[](shared_bytes, kAlignment)));
    std::memset(block.dynamic.get(), 0xff, shared_bytes);
    std::vector<Thread*> ready;
    for (size_t i = 0; i < block.threads.size(); ++i) {
        Thread& thread = block.threads[i];
        thread = Thread{};
        thread.index = {static_cast<unsigned>(i), 0, 0};
        thread.stack = stack_of(i);
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack;
        thread.context.uc_stack.ss_size = kStack;
        makecontext(&thread.context, thread_main, 0);
    }
    for (;;) {
        ready.clear();
        bool done = true;
        for (Thread& thread : block.threads) {
            if (thread.state == State::kReady) ready.push_back(&thread);
            done = done && thread.state == State::kDone;
        }
        if (done) return;
        if (ready.empty()) {
            finish_barrier();
            if (!block.error.empty()) return;
        }
        arrange(ready);
        for (Thread* thread : ready) {
            switch_to(*thread);
            if (!block.error.empty()) return;  // threads that have not ended are abandoned
        }
    }
}

}  // namespace

const uint3& thread_index() {
    return block.current->index;
}
const uint3& block_index() {
    return block.index;
}
const uint3& block_dim() {
    return block.dim;
}

void block_barrier(int line) {
    Thread& self = *block.current;
    self.state = State::kAtBarrier;
    self.barrier_line = line;
    switch_to_scheduler(self, false);
}

uint64_t exchange(unsigned mask, uint64_t value, unsigned source) {
    Thread& self = *block.current;
    self.mask = mask;
    self.source = source;
    self.value = value;
    self.kind = nullptr;
    self.state = State::kInWarp;
    if (!(mask >> lane_of(self) & 1) || !(mask >> source & 1)) {
        block.error = "a warp function takes from, or is called by, a lane outside its mask";
    } else {
        finish_exchange(self);
    }
    if (self.state != State::kReady || !block.error.empty()) switch_to_scheduler(self, false);
    return self.value;
}

bool last_of_warp(const void* kind, void* own, void* (&all)[32]) {
    Thread& self = *block.current;
    self.mask = 0xffffffffu;
    self.kind = kind;
    self.value = reinterpret_cast<uintptr_t>(own);
    self.state = State::kInWarp;
    const Thread* const warp = &self - lane_of(self);
    const Thread* const end = block.threads.data() + block.threads.size();
    for (unsigned lane = 0; lane < kWarp; ++lane) {
        if (!waits_with(self, warp + lane, end)) {
            switch_to_scheduler(self, false);
            return false;
        }
        all[lane] = reinterpret_cast<void*>(warp[lane].value);
    }
    return true;
}

void release_warp() {
    Thread* const warp = block.current - lane_of(*block.current);
    for (unsigned lane = 0; lane < kWarp; ++lane) warp[lane].state = State::kReady;
}

void fail(const char* complaint) {
    block.error = complaint;
    switch_to_scheduler(*block.current, false);
}

void* shared_array(const void* key, size_t bytes) {
    for (const auto& [declaration, memory] : block.arrays) {
        if (declaration == key) return memory.get();
    }
    block.arrays.emplace_back(key, std::unique_ptr<char[]>(new char[bytes]));
    char* memory = block.arrays.back().second.get();
    std::memset(memory, 0xff, bytes);
    return memory;
}

void* dynamic_shared_array() {
    return block.dynamic.get();
}

void launch(const char* name, unsigned blocks, int threads, size_t shared_bytes, const std::function<void()>& body) {
    counts.launches.push_back({name, blocks, threads, shared_bytes});
    if (settings.fail_launch >= 0 && settings.fail_launch-- == 0) {
        counts.error = 1;
        return;
    }
    if (threads < 1 || threads > 1024)
        throw std::runtime_error("cusim: a block of " + std::to_string(threads) + " threads");
    if (shared_bytes > 227 * 1024) throw std::runtime_error("cusim: more than 227 KiB of shared memory");
    block.threads.resize(threads);
    if (settings.dry) return;
    block.dim = {static_cast<unsigned>(threads), 1, 1};
    block.body = &body;
    block.error.clear();
    std::vector<unsigned> order(blocks - std::min(blocks, settings.first_block));
    std::iota(order.begin(), order.end(), settings.first_block);
    arrange(order);
    for (const unsigned index : order) {
        run_block(index, shared_bytes);
        if (!block.error.empty()) throw std::runtime_error(std::string("cusim: ") + name + ": " + block.error);
    }
}

void count_read(size_t bytes) {
    counts.read += bytes;
}
void count_written(size_t bytes) {
    counts.written += bytes;
}

int last_error() {
    return std::exchange(counts.error, 0);
}

namespace {

struct Device {
    bool has_context = false;
};
Device devices[2];
int device_count = 1;
bool initialized = false;   // whether something has used the driver
Device* current = nullptr;  // the thread's context, known by its device

}  // namespace

bool set_device(int device) {
    if (device < 0 || device >= device_count) return false;
    current = &devices[device];
    current->has_context = initialized = true;
    return true;
}

void* driver_function(const char* name) {
    if (std::string(name) == "cuCtxGetCurrent") {
        int (*get)(void**) = [](void** context) { return initialized ? (*context = current, 0) : 3; };
        return reinterpret_cast<void*>(get);
    }
    if (std::string(name) == "cuCtxSetCurrent") {
        int (*set)(void*) = [](void* context) { return current = static_cast<Device*>(context), 0; };
        return reinterpret_cast<void*>(set);
    }
    return nullptr;
}

}  // namespace simulator

// For the tests, through ctypes.
extern "C" __attribute__((visibility("default"))) void cusim_set(int order, unsigned seed, int fail_launch,
                                                                 unsigned first_block, bool dry) {
    simulator::settings = {static_cast<simulator::Order>(order), std::mt19937(seed), fail_launch, first_block, dry};
    simulator::counts = {};
}
extern "C" __attribute__((visibility("default"))) uint64_t cusim_read() {
    return simulator::counts.read;
}
extern "C" __attribute__((visibility("default"))) uint64_t cusim_written() {
    return simulator::counts.written;
}
extern "C" __attribute__((visibility("default"))) int cusim_launches() {
    return static_cast<int>(simulator::counts.launches.size());
}
extern "C" __attribute__((visibility("default"))) const char* cusim_launch_name(int i) {
    return simulator::counts.launches[i].name.c_str();
}
// A process as it starts, with so many devices and no context; and with one on a device, made current by another
// library, unless it is -1.
extern "C" __attribute__((visibility("default"))) void cusim_devices(int count, int current) {
    simulator::devices[0] = simulator::devices[1] = {};
    simulator::device_count = count;
    simulator::current = nullptr;
    simulator::initialized = false;
    if (current >= 0) simulator::set_device(current);
}
extern "C" __attribute__((visibility("default"))) bool cusim_has_context(int device) {
    return simulator::devices[device].has_context;
}
extern "C" __attribute__((visibility("default"))) int cusim_current() {
    return simulator::current == nullptr ? -1 : static_cast<int>(simulator::current - simulator::devices);
}
