// One lane: for processors that we know nothing about, and to hold the vector code against.
#define REFUSION_ISA scalar
#define REFUSION_LANES 1
#define REFUSION_REGISTERS 32
#define REFUSION_OUTPUT_BLOCK 4
#define REFUSION_VECTOR_BLOCK 2
#define REFUSION_NORM_VECTORS 1
#define REFUSION_CONVOLUTION_OUTPUTS 6
#define REFUSION_CONVOLUTION_VECTORS 2
#define REFUSION_SCRATCH_KB 560
#define REFUSION_TABLE scalar_kernels
#define REFUSION_FAST_TABLE scalar_fast_kernels
#include "isa.inc"
#include "isa_fast.inc"
