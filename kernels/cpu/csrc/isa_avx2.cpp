// 16 registers of 8 lanes: 12 sums, 3 vectors of pixels, 1 weight.
#define REFUSION_ISA avx2
#define REFUSION_LANES 8
#define REFUSION_REGISTERS 16
#define REFUSION_OUTPUT_BLOCK 4
#define REFUSION_VECTOR_BLOCK 3
#define REFUSION_NORM_VECTORS 4
#define REFUSION_CONVOLUTION_OUTPUTS 6
#define REFUSION_CONVOLUTION_VECTORS 2
#define REFUSION_SCRATCH_KB 1152
#define REFUSION_TABLE avx2_kernels
#define REFUSION_FAST_TABLE avx2_fast_kernels
#include "isa.inc"
#include "isa_fast.inc"
