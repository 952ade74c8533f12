// Reading engine bundles for TensorRT, see docs/formats.md.
#pragma once

#include <string>

namespace refusion {

struct PlanBundle {
    std::string path, plan, network;
    bool holds_host_code;  // a runtime of its own, which TensorRT runs only if told to
};

// Reads the manifest and the plan of a bundle, whose hash has to be right. A plan is code: without `trust`, it has to be on the
// list of engines that refusion_edge/bundle/trust.py keeps. Throws Failure.
PlanBundle read_plan_bundle(const std::string& path, bool trust);

}  // namespace refusion
