// In place of plan_engine.cpp in a library that is built without REFUSION_EDGE_TENSORRT.
#include "engine.hpp"
#include "failure.hpp"

namespace refusion {

std::unique_ptr<Engine> make_plan_engine(const std::string&, bool) {
    throw Failure(REFUSION_EDGE_UNSUPPORTED, "this library does not run TensorRT plans; build it with -DREFUSION_EDGE_TENSORRT=ON");
}

}  // namespace refusion
