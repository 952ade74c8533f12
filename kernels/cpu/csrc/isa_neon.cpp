// What every aarch64 processor has: 32 registers of 4 lanes.
#define REFUSION_ISA neon
#define REFUSION_LANES 4
#define REFUSION_REGISTERS 32
#define REFUSION_OUTPUT_BLOCK 8
#define REFUSION_VECTOR_BLOCK 3
#define REFUSION_NORM_VECTORS 4
#define REFUSION_CONVOLUTION_OUTPUTS 8
#define REFUSION_CONVOLUTION_VECTORS 3
#define REFUSION_SCRATCH_KB 560
#define REFUSION_TABLE neon_kernels
#define REFUSION_FAST_TABLE neon_fast_kernels
#include "isa.inc"
#include "isa_fast.inc"
