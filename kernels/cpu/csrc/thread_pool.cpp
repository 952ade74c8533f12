#include "thread_pool.hpp"

namespace refusion {

ThreadPool::ThreadPool(int threads) {
    try {
        workers_.reserve(static_cast<std::size_t>(threads));
        for (int worker = 1; worker < threads; ++worker) workers_.emplace_back([this, worker] { serve(worker); });
    } catch (...) {
        stop();
        throw;
    }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::run(int units, const std::function<void(int, int)>& work) {
    std::unique_lock<std::mutex> lock(mutex_);
    work_ = &work;
    next_ = 0;
    units_ = units;
    started_.notify_all();
    take_units(0, lock);
    finished_.wait(lock, [this] { return running_ == 0; });
    work_ = nullptr;
}

void ThreadPool::serve(int worker) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
        started_.wait(lock, [this] { return stopping_ || next_ < units_; });
        if (stopping_) return;
        take_units(worker, lock);
    }
}

// Units take milliseconds: one lock for each is nothing, and easier to see through than atomics.
void ThreadPool::take_units(int worker, std::unique_lock<std::mutex>& lock) {
    while (next_ < units_) {
        const int unit = next_++;
        ++running_;
        lock.unlock();
        (*work_)(unit, worker);
        lock.lock();
        --running_;
    }
    if (running_ == 0) finished_.notify_one();
}

void ThreadPool::stop() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        stopping_ = true;
    }
    started_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

}  // namespace refusion
