/* refusion-edge from C: fuse two luma planes without Python, on the CPU or, with a program file, on an NVIDIA GPU.
 *
 * Link with librefusion_edge. Any thread may call any function; calls with the same instance run one at a time. On
 * failure, a function returns NULL or one of the codes below, and refusion_edge_error() says what is wrong and what to do.
 * The library prints nothing and never ends the process.
 */
#ifndef REFUSION_EDGE_H
#define REFUSION_EDGE_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define REFUSION_EDGE_API __attribute__((visibility("default")))
#else
#define REFUSION_EDGE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct refusion_edge refusion_edge;

/* Version of this interface; the library's major number. */
#define REFUSION_EDGE_ABI 1

/* Version of the loaded library, which is the version of the package, such as "1.2.3". */
REFUSION_EDGE_API const char* refusion_edge_version(void);

/* What a function returns, and refusion_edge_error_code after one that returned NULL. */
#define REFUSION_EDGE_OK 0
#define REFUSION_EDGE_INVALID 1     /* an argument: NULL, a size, a number of threads, a pixel that is not finite */
#define REFUSION_EDGE_UNREADABLE 2  /* a file is missing or cannot be read */
#define REFUSION_EDGE_DAMAGED 3     /* the bytes are not those of weights or of a program, or were changed */
#define REFUSION_EDGE_UNSUPPORTED 4 /* this network, processor, device, driver or build cannot do it */
#define REFUSION_EDGE_NO_MEMORY 5   /* too little memory, of the host or the device */
#define REFUSION_EDGE_FAILED 6      /* the system or the device failed, such as a thread or a driver call */
#define REFUSION_EDGE_UNTRUSTED 7   /* compiled code that was neither built here nor trusted */

/* What is computed in; reduced precision is faster, and needs a processor with instructions for it. bf16: the matrix products
 * of the paper's network and the convolutions of the network `fast` multiply eight bits of mantissa; their sums and all else
 * are fp32. fp16, of the network `fast` only: the convolutions have eleven bits of mantissa; the statistics and the composition
 * of the result are fp32. */
#define REFUSION_EDGE_FP32 0
#define REFUSION_EDGE_BF16 1
#define REFUSION_EDGE_FP16 2

/* Read a weights file (safetensors, as in an engine bundle or the package) of the paper's network or of the network `fast`
 * (the file says which), and prepare to fuse with `threads` threads, 1 to 256, in a precision; 0 threads stands for one per
 * processor that this process may use. Returns NULL on failure. */
REFUSION_EDGE_API refusion_edge* refusion_edge_create(const char* weights_path, int threads, int precision);

/* The same from the bytes of a weights file, which are copied. */
REFUSION_EDGE_API refusion_edge* refusion_edge_create_from_memory(const void* weights, size_t size, int threads, int precision);

/* Read a program file (program.rfx of an engine bundle for the back end fused) and prepare to fuse on the first CUDA device
 * that the driver lists; its kernels test themselves first. The library has to be built with REFUSION_EDGE_GPU. Returns NULL
 * on failure. */
REFUSION_EDGE_API refusion_edge* refusion_edge_create_program(const char* program_path);

/* The same from the bytes of a program file, which are copied. */
REFUSION_EDGE_API refusion_edge* refusion_edge_create_program_from_memory(const void* program, size_t size);

/* Read an engine bundle for TensorRT or TensorRT-RTX (the folder with manifest.json and engine.plan) and prepare to fuse on
 * the first CUDA device. The plan has to match its hash in the manifest, and its accuracy has to have been checked on a device.
 * A plan is code: unless `trust` is 1, it has to be on this user's list of engines that were built here or are trusted, see
 * SECURITY.md. The library has to be built with REFUSION_EDGE_TENSORRT. Returns NULL on failure. */
REFUSION_EDGE_API refusion_edge* refusion_edge_create_plan(const char* bundle_path, int trust);

/* Fuse two planes of `height` x `width` pixels, each side 8 to 16384.
 *
 * a, b: sources (a: infrared, functional, near, under), float in [0, 1]; only read, at any alignment.
 * fused: result, float in [0, 1], before any stretch; must not overlap the sources. If a pixel of a or b is not finite, all
 *   of it is NaN. In fp16, a finite pixel far outside [0, 1] may overflow, which makes the pixels around it NaN.
 * ..._row_stride: bytes from one row to the next; may be negative. Pixels of a row are consecutive.
 * Returns 0, or a code on failure (a size out of range, no memory). */
REFUSION_EDGE_API int refusion_edge_fuse(refusion_edge* instance, const float* a, ptrdiff_t a_row_stride, const float* b,
                                         ptrdiff_t b_row_stride, int height, int width, float* fused,
                                         ptrdiff_t fused_row_stride);

/* Types of pixels. */
#define REFUSION_EDGE_FLOAT 0  /* float, [0, 1] */
#define REFUSION_EDGE_UINT8 1  /* GRAY8, and the Y plane of NV12 and I420 */
#define REFUSION_EDGE_UINT16 2 /* Y16, GRAY16 in the byte order of the processor */

/* A plane as cameras and decoders deliver it. Zeros in all fields except `pixels`, `pitch` and `type` select the defaults. */
typedef struct refusion_edge_plane {
    void* pixels;    /* the first pixel; sources are only read */
    ptrdiff_t pitch; /* bytes from one row to the next; may be negative, and longer than the row */
    int type;
    float black, white; /* levels that stand for 0 and 1, such as 16 and 235, or the coldest and the warmest of a thermal
                           camera; levels beyond them are clipped. Both 0: the whole range of the type */
} refusion_edge_plane;

/* Fuse two planes into a third, each of any type. The size is as above. With `stretch`,
 * the darkest pixel of the result becomes black and the brightest white, as the official script does, but contrast is raised
 * four times at most; without, the same levels stand for the same values in every image, which video needs. A pixel that is
 * not finite fails unless the result is float. The result may be one of the sources. Returns 0, or a code on failure; the
 * result is then untouched. */
REFUSION_EDGE_API int refusion_edge_fuse_planes(refusion_edge* instance, const refusion_edge_plane* a,
                                                const refusion_edge_plane* b, int height, int width, int stretch,
                                                const refusion_edge_plane* fused);

/* Number of statistics of a pair that the network `fast` adapts to. */
#define REFUSION_EDGE_STATISTICS 8

/* Like refusion_edge_fuse with the network `fast`, but adapted to these statistics instead of those of the pair. Video does
 * not flicker if you pass the statistics of the previous frame, or smoothed ones. NULL selects the statistics of the pair. */
REFUSION_EDGE_API int refusion_edge_fuse_adapted(refusion_edge* instance, const float* a, ptrdiff_t a_row_stride,
                                                 const float* b, ptrdiff_t b_row_stride, int height, int width,
                                                 const double* statistics, float* fused, ptrdiff_t fused_row_stride);

/* Compute the statistics of a pair that the network `fast` adapts to: mean and deviation of a, b, max(a, b) and |a - b|. */
REFUSION_EDGE_API int refusion_edge_statistics(refusion_edge* instance, const float* a, ptrdiff_t a_row_stride, const float* b,
                                               ptrdiff_t b_row_stride, int height, int width, double* statistics);

/* Name of the network in use: "refusion", that of the paper, or "fast". */
REFUSION_EDGE_API const char* refusion_edge_network(const refusion_edge* instance);

/* Convert a fused plane to 8 bits: with `stretch`, its darkest pixel to 0 and its brightest to 255, as the official script
 * does, but contrast is raised four times at most; without, [0, 1] to [0, 255], the same for every image, which video needs.
 * Strides in bytes. */
REFUSION_EDGE_API int refusion_edge_to_uint8(const float* fused, ptrdiff_t fused_row_stride, int height, int width, int stretch,
                                             uint8_t* image, ptrdiff_t image_row_stride);

/* Name of the instruction set in use, or "sm_87" and the like on a GPU. */
REFUSION_EDGE_API const char* refusion_edge_isa(const refusion_edge* instance);

/* Number of threads in use; 0 on a GPU. */
REFUSION_EDGE_API int refusion_edge_threads(const refusion_edge* instance);

/* Free an instance; NULL is allowed. */
REFUSION_EDGE_API void refusion_edge_destroy(refusion_edge* instance);

/* The last failure of this thread, in one sentence; valid until its next failure. */
REFUSION_EDGE_API const char* refusion_edge_error(void);

/* Its code. */
REFUSION_EDGE_API int refusion_edge_error_code(void);

#ifdef __cplusplus
}
#endif

#endif
