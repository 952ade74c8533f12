// A few threads that share the units of one job after another.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace refusion {

// The thread that calls `run` works, too; a pool of one has no threads at all. Not to be used by two threads at once.
class ThreadPool {
  public:
    // Throws std::system_error where the system gives no more threads; none is left behind then.
    explicit ThreadPool(int threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int threads() const { return static_cast<int>(workers_.size()) + 1; }

    // Calls work(unit, worker) for every unit in [0, units), each once, on any worker in [0, threads()). Returns when all
    // are done. `work` must not throw.
    void run(int units, const std::function<void(int, int)>& work);

  private:
    void serve(int worker);
    void take_units(int worker, std::unique_lock<std::mutex>& lock);
    void stop();

    std::mutex mutex_;
    std::condition_variable started_, finished_;
    const std::function<void(int, int)>* work_ = nullptr;
    int next_ = 0, units_ = 0, running_ = 0;
    bool stopping_ = false;
    std::vector<std::thread> workers_;
};

}  // namespace refusion
