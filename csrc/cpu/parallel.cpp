#include "parallel.h"

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#include <pthread.h>
#define LNB_POSIX 1
#endif

#include <algorithm>
#include <atomic>

#include "sleeping_pool.h"

namespace lnb {
namespace {

// libgomp's entry point for `#pragma omp parallel`; LLVM's and Intel's runtimes export it too.
using GompParallel = void (*)(void (*body)(void*), void* context, unsigned threads, unsigned flags);

std::atomic<bool> forked{false};
std::atomic<SleepingPool*> pool{nullptr};

GompParallel find_openmp() {
#ifdef LNB_POSIX
    // A child inherits the memory of both kinds of pool but none of their threads.
    pthread_atfork(nullptr, nullptr, [] {
        forked = true;
        pool = nullptr;  // leaked: its mutex may be held by a thread that no longer exists
    });
#endif
#if defined(LNB_POSIX) && !defined(LNB_OWN_THREADS)
    return reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
#else
    return nullptr;
#endif
}

GompParallel openmp() {
    static const GompParallel found = find_openmp();
    return forked ? nullptr : found;
}

// Never destroyed: a thread that still sleeps in it at exit needs its mutex.
SleepingPool& sleeping_pool() {
    SleepingPool* current = pool.load(std::memory_order_acquire);
    if (current == nullptr) {
        auto* fresh = new SleepingPool();
        if (pool.compare_exchange_strong(current, fresh, std::memory_order_acq_rel)) return *fresh;
        delete fresh;
    }
    return *current;
}

struct Loop {
    int64_t parts;
    void (*body)(void*, int64_t);
    void* context;
    std::atomic<int64_t> next{0};

    static void run(void* loop) {
        auto& self = *static_cast<Loop*>(loop);
        for (int64_t part; (part = self.next.fetch_add(1, std::memory_order_relaxed)) < self.parts;) {
            self.body(self.context, part);
        }
    }
};

}  // namespace

void parallel_for(int64_t parts, int threads, void (*body)(void* context, int64_t part), void* context) {
    Loop loop{parts, body, context};
    threads = static_cast<int>(std::min<int64_t>(threads, parts));
    if (threads <= 1) {
        Loop::run(&loop);
    } else if (const GompParallel parallel = openmp()) {
        parallel(Loop::run, &loop, static_cast<unsigned>(threads), 0);
    } else {
        sleeping_pool().run(Loop::run, &loop, threads - 1);
    }
}

const char* threading() {
    return openmp() ? "openmp" : "pool";
}

}  // namespace lnb
