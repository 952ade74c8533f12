// As neon, with dot products of pairs in bf16, which processors have from about 2020 on.
#define REFUSION_ISA neon_bf16
#define REFUSION_BF16
#define REFUSION_LANES 4
#define REFUSION_REGISTERS 32
#define REFUSION_OUTPUT_BLOCK 8
#define REFUSION_VECTOR_BLOCK 3
#define REFUSION_NORM_VECTORS 4
#define REFUSION_CONVOLUTION_OUTPUTS 8
#define REFUSION_CONVOLUTION_VECTORS 3
#define REFUSION_SCRATCH_KB 560
#define REFUSION_TABLE neon_bf16_kernels
#include "isa.inc"
