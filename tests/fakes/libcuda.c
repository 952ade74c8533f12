/* A fake libcuda.so.1 for the real layers over it: what they hand to C arrives here as it would at the driver.
 *
 * Device memory is host memory. Every module holds one kernel that copies bytes: (to, from, count, null, null),
 * pointers and a 32-bit count. With launch_with, launches go to a function of the caller instead. As in the driver, nothing but the set-up works in a thread without a current context, work on a
 * stream that is recorded happens when the graph is launched, and more than 48 KiB of shared memory has to be asked for.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS, INVALID_VALUE, OUT_OF_MEMORY, DEINITIALIZED = 4, INVALID_CONTEXT = 201, NOT_FOUND = 500, NOT_READY = 600, STREAM_CAPTURING = 900 };
enum { LARGEST = 1 << 30, MOST_STEPS = 64, ASKED = 48 * 1024, MOST_ARGUMENTS = 512 };

typedef struct { char symbol[64], name[64]; int shared; } Module; /* an image: ELF, symbol, and for launch_with a name */
typedef struct { unsigned x, y, z, threads, shared; } Shape;
typedef struct {
    uint64_t to, from;
    size_t count; /* of bytes to copy, or of the arguments of a launch */
    Module *kernel; /* of a launch, or NULL */
    Shape shape;
    char arguments[MOST_ARGUMENTS];
} Step;
typedef struct { Step steps[MOST_STEPS]; int count, is_recording; } Work;
typedef int Launch(const char *name, const Shape *shape, const void *arguments, size_t size);
typedef struct { int is_recorded; double at_ms; } Event;

static __thread int current;
static int retained, held;
static double clock_ms;
static Launch *launch_elsewhere;

static int is_integrated = 1, is_shut_down;

void launch_with(Launch *launch) { launch_elsewhere = launch; }
void integrate(int integrated) { is_integrated = integrated; }
void shut_down(void) { is_shut_down = 1; } /* as the driver does when a process ends */

#define IN_CONTEXT if (!current) return INVALID_CONTEXT

int held_by_callers(void) { return held + retained; }
int contexts_here(void) { return current; }

static void *hold(size_t size) {
    void *memory = aligned_alloc(256, (size + 255) / 256 * 256);
    memset(memory, 0, size);
    held++;
    return memory;
}

static int drop(void *memory) {
    IN_CONTEXT;
    free(memory);
    held--;
    return SUCCESS;
}

static int start(Work *stream, Step step) {
    IN_CONTEXT;
    if (!stream) return INVALID_VALUE;
    if (stream->is_recording) stream->steps[stream->count++] = step;
    else if (step.kernel) return launch_elsewhere(step.kernel->name, &step.shape, step.arguments, step.count);
    else memcpy((void *)step.to, (void *)step.from, step.count);
    return SUCCESS;
}

int cuInit(unsigned flags) { return flags ? INVALID_VALUE : SUCCESS; }
int cuDriverGetVersion(int *version) { return *version = 12060, SUCCESS; }
int cuDeviceGetCount(int *count) { return *count = 1, SUCCESS; }
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, ordinal ? INVALID_VALUE : SUCCESS; }
int cuDeviceGetName(char *name, int length, int device) { return snprintf(name, (size_t)length, "Stub %d", device), SUCCESS; }
int cuDeviceComputeCapability(int *major, int *minor, int device) { return *major = 8, *minor = 7, device; }
int cuDeviceGetAttribute(int *value, int what, int device) {
    *value = what == 75 ? 8 : what == 76 ? 7 : (what == 18 || what == 19) && is_integrated; /* major, minor, integrated, maps host memory */
    return device;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { return retained++, *context = &retained, device; }
int cuDevicePrimaryCtxRelease_v2(int device) { return retained--, device; }
int cuCtxPushCurrent_v2(void *context) {
    if (is_shut_down) return DEINITIALIZED;
    return context == &retained ? (current++, SUCCESS) : INVALID_CONTEXT;
}
int cuCtxPopCurrent_v2(void **context) {
    IN_CONTEXT;
    *context = &retained;
    return current--, SUCCESS;
}

int cuModuleLoadData(void **module, const char *image) {
    IN_CONTEXT;
    if (memcmp(image, "\177ELF", 4)) return INVALID_VALUE;
    Module *loaded = hold(sizeof(Module));
    snprintf(loaded->symbol, sizeof loaded->symbol, "%s", image + 4);
    if (launch_elsewhere) snprintf(loaded->name, sizeof loaded->name, "%s", image + 4 + strlen(image + 4) + 1);
    return *module = loaded, SUCCESS;
}
int cuModuleLoadDataEx(void **module, const char *image, unsigned count, int *options, void **values) {
    for (unsigned index = 0; index < count; index++) /* the driver says how much it wrote into the logs */
        if (options[index] == 4 || options[index] == 6) values[index] = 0;
    return cuModuleLoadData(module, image);
}
int cuModuleUnload(void *module) { return drop(module); }
int cuModuleGetFunction(void **function, Module *module, const char *symbol) {
    return *function = module, strcmp(symbol, module->symbol) ? NOT_FOUND : SUCCESS;
}
int cuFuncSetAttribute(Module *function, int what, int value) { return function->shared = value, what == 8 ? SUCCESS : INVALID_VALUE; }

int cuLaunchKernel(Module *function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void *stream, void **parameters, void **extra) {
    struct { uint64_t to, from; int32_t count; int32_t gap; uint64_t null[2]; } block;
    if (!x || !y || !z || by != 1 || bz != 1 || parameters || !extra) return INVALID_VALUE;
    if (extra[0] != (void *)1 || extra[2] != (void *)2 || extra[4]) return INVALID_VALUE;
    size_t size = *(size_t *)extra[3];
    if (shared > ASKED && shared > (unsigned)function->shared) return INVALID_VALUE;
    if (launch_elsewhere) {
        Step step = {.count = size, .kernel = function, .shape = {x, y, z, bx, shared}};
        if (size > sizeof step.arguments) return INVALID_VALUE;
        memcpy(step.arguments, extra[1], size);
        return start(stream, step);
    }
    if (bx != 64 || size != sizeof block) return INVALID_VALUE;
    memcpy(&block, extra[1], sizeof block);
    if (block.null[0] || block.null[1] || block.count < 0) return INVALID_VALUE;
    return start(stream, (Step){.to = block.to, .from = block.from, .count = (size_t)block.count});
}

int cuMemAlloc_v2(uint64_t *pointer, size_t size) {
    IN_CONTEXT;
    return size > LARGEST ? OUT_OF_MEMORY : (*pointer = (uint64_t)hold(size), SUCCESS);
}
int cuMemFree_v2(uint64_t pointer) { return drop((void *)pointer); }
int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) { return *free_bytes = 1 << 20, *total = LARGEST, SUCCESS; }
int cuMemHostAlloc(void **pointer, size_t size, unsigned flags) {
    IN_CONTEXT;
    return size > LARGEST ? OUT_OF_MEMORY : (*pointer = hold(size), flags & ~2u ? INVALID_VALUE : SUCCESS);
}
int cuMemHostGetDevicePointer_v2(uint64_t *pointer, void *memory, unsigned flags) {
    return *pointer = (uint64_t)memory, flags ? INVALID_VALUE : SUCCESS;
}
int cuMemFreeHost(void *memory) { return drop(memory); }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t count, void *stream) {
    return start(stream, (Step){.to = to, .from = (uint64_t)from, .count = count});
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t count, void *stream) {
    return start(stream, (Step){.to = (uint64_t)to, .from = from, .count = count});
}

int cuStreamCreate(void **stream, unsigned flags) {
    IN_CONTEXT;
    return *stream = hold(sizeof(Work)), flags == 1 ? SUCCESS : INVALID_VALUE;
}
int cuStreamDestroy_v2(void *stream) { return drop(stream); }
int cuStreamSynchronize(Work *stream) {
    IN_CONTEXT;
    return stream->is_recording ? STREAM_CAPTURING : SUCCESS;
}
int cuStreamBeginCapture_v2(Work *stream, int mode) {
    IN_CONTEXT;
    stream->count = 0;
    stream->is_recording = 1;
    return mode == 1 ? SUCCESS : INVALID_VALUE; /* only what this very thread does may break it */
}
int cuStreamEndCapture(Work *stream, void **graph) {
    IN_CONTEXT;
    if (!stream->is_recording) return INVALID_VALUE;
    stream->is_recording = 0;
    return *graph = memcpy(hold(sizeof(Work)), stream, sizeof(Work)), SUCCESS;
}
int cuGraphInstantiateWithFlags(void **executable, Work *graph, unsigned long long flags) {
    IN_CONTEXT;
    return *executable = memcpy(hold(sizeof(Work)), graph, sizeof(Work)), flags ? INVALID_VALUE : SUCCESS;
}
int cuGraphLaunch(Work *executable, void *stream) {
    for (int index = 0; index < executable->count; index++) {
        int code = start(stream, executable->steps[index]);
        if (code) return code;
    }
    IN_CONTEXT;
    return SUCCESS;
}
int cuGraphDestroy(void *graph) { return drop(graph); }
int cuGraphExecDestroy(void *executable) { return drop(executable); }

int cuEventCreate(void **event, unsigned flags) {
    IN_CONTEXT;
    return *event = hold(sizeof(Event)), flags ? INVALID_VALUE : SUCCESS;
}
int cuEventDestroy_v2(void *event) { return drop(event); }
int cuEventRecord(Event *event, Work *stream) {
    IN_CONTEXT;
    *event = (Event){1, clock_ms += 2.5};
    return stream->is_recording ? INVALID_VALUE : SUCCESS;
}
int cuEventRecordWithFlags(Event *event, Work *stream, unsigned flags) {
    IN_CONTEXT;
    *event = (Event){1, clock_ms += 2.5};
    return stream->is_recording && flags == 1 ? SUCCESS : INVALID_VALUE; /* external: only in a graph */
}
int cuEventSynchronize(Event *event) { return event->is_recorded ? SUCCESS : NOT_READY; }
int cuEventElapsedTime(float *ms, Event *first, Event *last) { return *ms = (float)(last->at_ms - first->at_ms), SUCCESS; }

int cuGetErrorName(int code, const char **name) {
    *name = code == INVALID_CONTEXT ? "CUDA_ERROR_INVALID_CONTEXT" : "CUDA_ERROR";
    return SUCCESS;
}
int cuGetErrorString(int code, const char **text) { return cuGetErrorName(code, text); }

/* cuda-bindings asks for every function by its plain name and gets the newest of it. */
int cuGetProcAddress_v2(const char *symbol, void **found, int version, uint64_t flags, int *status) {
    char newest[128];
    void *here = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    (void)version, (void)flags;
    snprintf(newest, sizeof newest, "%s%s", symbol, strcmp(symbol, "cuGraphInstantiate") ? "_v2" : "WithFlags");
    *found = dlsym(here, newest);
    if (!*found) *found = dlsym(here, symbol);
    if (status) *status = *found ? 0 : 1;
    return *found ? SUCCESS : NOT_FOUND;
}
