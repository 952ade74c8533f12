// 32 registers of 16 lanes: 24 sums, 3 vectors of pixels, weights as broadcast operands.
#define REFUSION_ISA avx512
#define REFUSION_LANES 16
#define REFUSION_REGISTERS 32
#define REFUSION_OUTPUT_BLOCK 8
#define REFUSION_VECTOR_BLOCK 3
#define REFUSION_NORM_VECTORS 1
#define REFUSION_CONVOLUTION_OUTPUTS 8
#define REFUSION_CONVOLUTION_VECTORS 3
#define REFUSION_SCRATCH_KB 560
#define REFUSION_TABLE avx512_kernels
#define REFUSION_FAST_TABLE avx512_fast_kernels
#include "isa.inc"
#include "isa_fast.inc"
