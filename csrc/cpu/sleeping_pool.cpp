#include "sleeping_pool.h"

#include <system_error>
#include <thread>

namespace lnb {

void SleepingPool::run(void (*task)(void*), void* context, int helpers) {
    const std::unique_lock<std::mutex> only_caller(callers_, std::try_to_lock);
    if (!only_caller.owns_lock()) {
        task(context);
        return;
    }
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        grow(helpers);
        task_ = task;
        context_ = context;
        wanted_ = helpers;
    }
    wake_.notify_all();
    task(context);
    std::unique_lock<std::mutex> lock(mutex_);
    wanted_ = 0;
    done_.wait(lock, [this] { return running_ == 0; });
}

void SleepingPool::grow(int helpers) {
    try {
        for (; size_ < helpers; ++size_) std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {  // NOLINT(bugprone-empty-catch)
        // The process may start no more threads: those there are, and the caller, do all the work.
    }
}

void SleepingPool::serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
        wake_.wait(lock, [this] { return wanted_ > 0; });
        --wanted_;
        ++running_;
        lock.unlock();
        task_(context_);
        lock.lock();
        if (--running_ == 0) done_.notify_one();
    }
}

}  // namespace lnb
