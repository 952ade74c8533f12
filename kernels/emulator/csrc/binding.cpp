// The Python module _emulator: decoded kernels and their launches on arrays. refusion_edge.kernels.emulator is its only user and
// checks what it passes.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "half.hpp"
#include "machine.hpp"

namespace nb = nanobind;
using namespace emulator;

namespace {

template <class T>
using Vector = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Table = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

constexpr std::size_t kFields = 9;  // of an instruction

Kernel make_kernel(Table<const std::int64_t> code, Vector<const std::int32_t> operands, Vector<const std::uint8_t> classes,
                   Table<const std::uint64_t> constants, const std::vector<int>& registers, int shared_grain) {
    if (code.shape(1) != kFields || constants.shape(1) != 4 || registers.size() != 3 || operands.shape(0) != classes.shape(0)) {
        throw std::invalid_argument("the tables of a kernel do not have the shapes of this module; compile it again");
    }
    Kernel kernel;
    kernel.operands.assign(operands.data(), operands.data() + operands.shape(0));
    kernel.classes.assign(classes.data(), classes.data() + classes.shape(0));
    std::size_t first = 0;
    for (std::size_t row = 0; row < code.shape(0); ++row) {
        const std::int64_t* f = code.data() + row * kFields;
        const auto at = [f](std::size_t k) { return static_cast<std::int32_t>(f[k]); };
        kernel.code.push_back({static_cast<Op>(f[0]), at(1), at(2), at(3), at(4), at(5), at(6), at(7), f[8],
                               kernel.operands.data() + first, kernel.classes.data() + first});
        first += static_cast<std::size_t>(f[7]);
        kernel.has_wgmma = kernel.has_wgmma || kernel.code.back().op == Op::wgmma;
    }
    if (first != kernel.operands.size()) throw std::invalid_argument("the operands of a kernel are not those of its instructions");
    for (std::size_t row = 0; row < constants.shape(0); ++row) {
        const std::uint64_t* f = constants.data() + row * 4;
        kernel.constants.push_back({static_cast<std::int32_t>(f[0]), static_cast<std::int32_t>(f[1]), static_cast<std::int32_t>(f[2]), f[3]});
    }
    std::copy(registers.begin(), registers.end(), kernel.registers);
    kernel.shared_grain = shared_grain;
    return kernel;
}

nb::list run(const Kernel& kernel, nb::list regions, nb::bytes parameters, const std::vector<int>& grid, int threads,
             std::uint32_t shared_bytes, std::uint32_t shared_base, bool check, bool backward, std::uint64_t budget,
             Table<std::uint64_t> counts, Table<std::uint64_t> traffic) {
    if (grid.size() != 3 || counts.shape(0) != kernel.code.size() || counts.shape(1) != kCountFields ||
        traffic.shape(0) != regions.size() || traffic.shape(1) != kTrafficFields) {
        throw std::invalid_argument("the tables of a launch do not have the shapes of this module; compile it again");
    }
    Launch launch{};
    std::vector<Vector<std::uint8_t>> held;
    for (nb::handle entry : regions) {
        const auto fields = nb::cast<nb::tuple>(entry);
        auto data = nb::cast<Vector<std::uint8_t>>(fields[1]), defined = nb::cast<Vector<std::uint8_t>>(fields[2]);
        if (data.shape(0) != defined.shape(0)) throw std::invalid_argument("a buffer and its shadow differ in size");
        launch.regions.push_back({nb::cast<std::uint64_t>(fields[0]), data.shape(0), data.data(), defined.data(),
                                  nb::cast<bool>(fields[3]), nb::cast<int>(fields[4])});
        held.push_back(data);
        held.push_back(defined);
    }
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(parameters.c_str());
    launch.parameters.assign(bytes, bytes + parameters.size());
    std::copy(grid.begin(), grid.end(), launch.grid);
    launch.threads = threads;
    launch.shared_bytes = shared_bytes;
    launch.shared_base = shared_base;
    launch.check = check;
    launch.backward = backward;
    launch.budget = budget;
    std::vector<Finding> findings;
    {
        const nb::gil_scoped_release released;
        Machine machine(kernel, launch, reinterpret_cast<Count*>(counts.data()), reinterpret_cast<Traffic*>(traffic.data()));
        machine.run();
        findings = machine.findings();
    }
    nb::list rows;
    for (const Finding& one : findings) {
        rows.append(nb::make_tuple(kKindNames[static_cast<int>(one.kind)], one.pc, one.cta, one.thread, one.other, one.address, one.count));
    }
    return rows;
}

template <std::size_t kSize>
std::vector<std::string> names(const char* const (&table)[kSize]) {
    return {std::begin(table), std::end(table)};
}

}  // namespace

NB_MODULE(_emulator, m) {
    nb::class_<Kernel>(m, "Kernel");
    m.def("make_kernel", &make_kernel);
    m.def("run", &run);
    m.attr("OPERATIONS") = nb::cast(names(kOperationNames));
    m.attr("FINDINGS") = nb::cast(names(kKindNames));
    m.attr("COUNT_FIELDS") = kCountFields;
    m.attr("TRAFFIC_FIELDS") = kTrafficFields;
}
