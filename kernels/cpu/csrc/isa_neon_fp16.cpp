// The network `fast` in half precision, which processors have from about 2018 on (ARMv8.2): 8 lanes of features.
#define REFUSION_ISA neon_fp16
#define REFUSION_FP16
#define REFUSION_LANES 4
#define REFUSION_REGISTERS 32
#define REFUSION_CONVOLUTION_OUTPUTS 8
#define REFUSION_CONVOLUTION_VECTORS 3
#define REFUSION_FAST_TABLE neon_fp16_fast_kernels
#include "isa_fast.inc"
