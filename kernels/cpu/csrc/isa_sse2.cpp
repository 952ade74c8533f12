// What every x86-64 processor has: 16 registers of 4 lanes, no fused multiply-add.
#define REFUSION_ISA sse2
#define REFUSION_LANES 4
#define REFUSION_REGISTERS 16
#define REFUSION_OUTPUT_BLOCK 4
#define REFUSION_VECTOR_BLOCK 2
#define REFUSION_NORM_VECTORS 4
#define REFUSION_CONVOLUTION_OUTPUTS 6
#define REFUSION_CONVOLUTION_VECTORS 2
#define REFUSION_SCRATCH_KB 560
#define REFUSION_TABLE sse2_kernels
#define REFUSION_FAST_TABLE sse2_fast_kernels
#include "isa.inc"
#include "isa_fast.inc"
