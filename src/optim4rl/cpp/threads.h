// Work shared out to a pool of threads, and scratch memory for it. For the drivers alone.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>

namespace optim4rl {

// Tasks that several threads take one by one. A thread that comes late finds none left, so nobody
// ever waits for a thread that has not started: a busy pool costs speed, not progress. A pool is
// XLA's, or has the same two functions.
class Tasks {
 public:
  template <class Pool, class Work>
  static void run(Pool& pool, int64_t count, const Work& work) {
    const int64_t helpers = std::min<int64_t>(pool.num_threads(), count) - 1;
    auto tasks = std::make_shared<Tasks>(count);
    // `work` is used only by those who got a task, and `run` waits for them all.
    auto join = [tasks, &work] { tasks->take_turns(work); };
    for (int64_t i = 0; i < helpers; ++i) pool.Schedule(decltype(join)(join));
    join();
    tasks->wait();
  }

  explicit Tasks(int64_t count) : count_(count) {}

 private:
  template <class Work>
  void take_turns(const Work& work) {
    int64_t finished = 0;
    for (int64_t task; (task = next_.fetch_add(1)) < count_; ++finished) work(task);
    if (finished == 0) return;
    std::lock_guard<std::mutex> lock(mutex_);
    finished_ += finished;
    if (finished_ == count_) all_finished_.notify_one();
  }

  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    all_finished_.wait(lock, [this] { return finished_ == count_; });
  }

  const int64_t count_;
  std::atomic<int64_t> next_{0};
  int64_t finished_ = 0;
  std::mutex mutex_;
  std::condition_variable all_finished_;
};

// This thread's scratch memory, kept from call to call.
inline float* workspace(int64_t floats) {
  struct Free {
    void operator()(float* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  thread_local std::unique_ptr<float, Free> memory;
  thread_local int64_t capacity = 0;
  if (capacity < floats) {
    memory.reset();
    memory.reset(static_cast<float*>(::operator new(floats * sizeof(float), std::align_val_t{64})));
    capacity = floats;
  }
  return memory.get();
}

}  // namespace optim4rl
