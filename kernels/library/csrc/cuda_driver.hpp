// The CUDA driver, found when it is needed: nothing of CUDA is linked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace refusion {

// The first device through its primary context, which others may share. The caller releases what it is handed, except
// modules. Throws Failure.
class CudaDriver {
  public:
    using Pointer = std::uint64_t;  // on the device
    using Stream = void*;
    using Graph = void*;
    using Function = void*;

    // Page-locked memory of the host; `pointer`: where the device sees it, or 0.
    struct HostBuffer {
        char* data = nullptr;
        std::size_t size = 0;
        Pointer pointer = 0;
    };

    struct Grid {
        unsigned x, y, z;
    };

    // The device is current in this thread for the life of this. Everything but the constructor of the driver needs it.
    class Current {
      public:
        explicit Current(const CudaDriver& driver);
        ~Current();
        Current(const Current&) = delete;
        Current& operator=(const Current&) = delete;

      private:
        const CudaDriver& driver_;
    };

    CudaDriver();
    ~CudaDriver();

    const std::string& device_name() const { return device_name_; }
    int architecture() const { return architecture_; }      // 87 for sm_87
    int driver_version() const { return driver_version_; }  // 12060 for CUDA 12.6
    bool is_zero_copy() const { return is_zero_copy_; }     // the device works in the host's memory

    Function load(const std::string& image, const std::string& symbol, int shared_bytes);
    void unload() noexcept;  // all modules
    void launch_kernel(Function function, Grid grid, unsigned threads, int shared_bytes, std::string arguments, Stream stream) const;
    Pointer allocate(std::size_t size) const;
    void free(Pointer pointer) const noexcept;
    HostBuffer allocate_host(std::size_t size, bool mapped) const;
    void free_host(const HostBuffer& buffer) const noexcept;
    Stream create_stream() const;
    void destroy_stream(Stream stream) const noexcept;
    void upload(Pointer to, const HostBuffer& from, Stream stream) const;
    void download(const HostBuffer& to, Pointer from, Stream stream) const;
    void synchronize(Stream stream) const;
    // What `work` starts on the stream, recorded without running.
    Graph capture(Stream stream, const std::function<void()>& work) const;
    void launch(Graph graph, Stream stream) const;
    void destroy_graph(Graph graph) const noexcept;

  private:
    struct Calls;

    void check(int code, const char* call) const;

    std::unique_ptr<Calls> calls_;
    std::vector<void*> modules_;
    void* context_ = nullptr;
    std::string device_name_;
    int device_ = 0, architecture_ = 0, driver_version_ = 0;
    bool is_zero_copy_ = false;
};

}  // namespace refusion
