// As avx512, with dot products of pairs in bf16.
#define REFUSION_ISA avx512_bf16
#define REFUSION_BF16
#define REFUSION_LANES 16
#define REFUSION_REGISTERS 32
#define REFUSION_OUTPUT_BLOCK 8
#define REFUSION_VECTOR_BLOCK 3
#define REFUSION_NORM_VECTORS 1
#define REFUSION_CONVOLUTION_OUTPUTS 8
#define REFUSION_CONVOLUTION_VECTORS 3
#define REFUSION_SCRATCH_KB 560
#define REFUSION_TABLE avx512_bf16_kernels
#define REFUSION_FAST_TABLE avx512_bf16_fast_kernels
#include "isa.inc"
#include "isa_fast.inc"
