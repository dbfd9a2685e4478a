// Worker threads that sleep on a condition variable between calls.
#pragma once

#include <condition_variable>
#include <mutex>

namespace lnb {

class SleepingPool {
  public:
    // Runs task(context) on the calling thread and on up to `helpers` others, and returns when all have returned. A
    // helper that wakes after the caller is done does not join in. While one call runs, another from a second thread
    // runs on that thread alone: the cores are taken.
    void run(void (*task)(void*), void* context, int helpers);

  private:
    void grow(int helpers);
    void serve();

    std::mutex callers_;
    std::mutex mutex_;  // guards what follows
    std::condition_variable wake_, done_;
    void (*task_)(void*) = nullptr;
    void* context_ = nullptr;
    int size_ = 0;     // threads
    int wanted_ = 0;   // helpers that may still join the current call
    int running_ = 0;  // helpers inside task_
};

}  // namespace lnb
