/* refusion-edge from C: fuse two luma planes on the CPU, without Python.
 *
 * Link with librefusion_edge. Every function may be called from any thread; calls with one instance wait for one another.
 * On failure a function returns NULL or nonzero, and refusion_edge_error() says what was expected, what came and what to
 * do. Nothing is ever printed, and no failure ends the process.
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

/* What the matrix products multiply; their sums and all else are fp32. bf16 has eight bits of mantissa, is faster, and
 * needs a processor with instructions for it. */
#define REFUSION_EDGE_FP32 0
#define REFUSION_EDGE_BF16 1

/* Read a weights file (safetensors, as in an engine bundle or the package) of the paper's network or of the network `fast`,
 * which the file tells, and get ready to fuse with `threads` threads, 1 to 256, in a precision; `fast` computes in fp32 only.
 * Returns NULL on failure. */
REFUSION_EDGE_API refusion_edge* refusion_edge_create(const char* weights_path, int threads, int precision);

/* Fuse two planes of `height` x `width` pixels, each side 8 to 16384.
 *
 * a, b: sources (a: infrared, functional, near, under), float in [0, 1]; only read, at any alignment.
 * fused: result, float in [0, 1], before any stretch; must not overlap the sources. If a pixel of a or b is not finite, all
 *   of it is NaN.
 * ..._row_stride: bytes from one row to the next; may be negative. Pixels of a row are consecutive.
 * Returns 0, or nonzero on failure (a size out of range, no memory). */
REFUSION_EDGE_API int refusion_edge_fuse(refusion_edge* instance, const float* a, ptrdiff_t a_row_stride, const float* b,
                                         ptrdiff_t b_row_stride, int height, int width, float* fused,
                                         ptrdiff_t fused_row_stride);

/* Number of statistics of a pair that the network `fast` adapts to. */
#define REFUSION_EDGE_STATISTICS 8

/* The same as refusion_edge_fuse with the network `fast`, adapted to these statistics instead of those of the pair: a video
 * that passes those of the frame before, or smoothed ones, does not flicker. NULL stands for those of the pair. */
REFUSION_EDGE_API int refusion_edge_fuse_adapted(refusion_edge* instance, const float* a, ptrdiff_t a_row_stride,
                                                 const float* b, ptrdiff_t b_row_stride, int height, int width,
                                                 const double* statistics, float* fused, ptrdiff_t fused_row_stride);

/* Take the statistics of a pair that the network `fast` adapts to: mean and deviation of a, b, max(a, b) and |a - b|. */
REFUSION_EDGE_API int refusion_edge_statistics(refusion_edge* instance, const float* a, ptrdiff_t a_row_stride, const float* b,
                                               ptrdiff_t b_row_stride, int height, int width, double* statistics);

/* Name of the network in use: "refusion", that of the paper, or "fast". */
REFUSION_EDGE_API const char* refusion_edge_network(const refusion_edge* instance);

/* Bring a fused plane to 8 bits: with `stretch`, its darkest pixel to 0 and its brightest to 255, as the official script
 * does; without, [0, 1] to [0, 255], the same for every image, which video needs. Strides in bytes. */
REFUSION_EDGE_API int refusion_edge_to_uint8(const float* fused, ptrdiff_t fused_row_stride, int height, int width, int stretch,
                                             uint8_t* image, ptrdiff_t image_row_stride);

/* Name of the instruction set in use. */
REFUSION_EDGE_API const char* refusion_edge_isa(const refusion_edge* instance);

/* Free an instance; NULL is allowed. */
REFUSION_EDGE_API void refusion_edge_destroy(refusion_edge* instance);

/* What the last failure of this thread was, in one sentence; valid until its next one. */
REFUSION_EDGE_API const char* refusion_edge_error(void);

#ifdef __cplusplus
}
#endif

#endif
