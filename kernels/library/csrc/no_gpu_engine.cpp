// In place of gpu_engine.cpp in a library that is built without REFUSION_EDGE_GPU.
#include "engine.hpp"
#include "failure.hpp"

namespace refusion {

std::unique_ptr<Engine> make_gpu_engine(const std::string&, const std::string&) {
    throw Failure(REFUSION_EDGE_UNSUPPORTED, "this library does not run programs; build it with -DREFUSION_EDGE_GPU=ON");
}

}  // namespace refusion
