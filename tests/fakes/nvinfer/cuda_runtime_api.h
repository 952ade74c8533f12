// What the header of TensorRT takes from CUDA's.
#pragma once
typedef struct CUstream_st* cudaStream_t;
