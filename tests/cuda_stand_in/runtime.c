/* A CUDA runtime for machines without a GPU.

   It says that there is one device of compute capability 7.5, a T4. The memory of that
   device is the machine's own, and no kernel runs. With it ONNX Runtime builds a
   session for CUDA and decides for every node where it belongs; what such a session
   answers means nothing.

   No header of CUDA is needed: to the caller an enumeration is an int, a handle a
   pointer, and 0 is success. All other functions that a wheel asks for are written by
   build.py, which also sets CUDA_MAJOR. */

#include <stdlib.h>
#include <string.h>

#define GIB ((size_t)1 << 30)
#define VERSION (1000 * CUDA_MAJOR + 80) /* 12080 is how CUDA writes 12.8 */

/* ---- The device ---- */

/* As CUDA lays it out; 13 dropped some fields of 12. What follows `processors` stays
   zero: nothing that is loaded here asks for it. */
struct properties {
    char name[256];
    char uuid[16];
    char luid[8];
    unsigned luid_mask;
    size_t memory;
    size_t shared_per_block;
    int registers_per_block;
    int warp;
    size_t pitch;
    int threads_per_block;
    int threads[3];
    int grid[3];
#if CUDA_MAJOR < 13
    int clock_rate;
#endif
    size_t constant_memory;
    int major, minor;
    size_t texture_alignment;
    size_t texture_pitch;
#if CUDA_MAJOR < 13
    int overlap;
#endif
    int processors;
};

/* The caller's structure is longer than ours: 1008 bytes in CUDA 13, more in 12. */
#define PROPERTIES_BYTES 1008

int cudaGetDeviceProperties(void *out, int device) {
    struct properties t4 = {
        .name = "stand-in for a Tesla T4",
        .memory = 15 * GIB,
        .shared_per_block = 48 << 10,
        .registers_per_block = 1 << 16,
        .warp = 32,
        .pitch = 0x7fffffff,
        .threads_per_block = 1024,
        .threads = {1024, 1024, 64},
        .grid = {0x7fffffff, 65535, 65535},
        .constant_memory = 64 << 10,
        .major = 7,
        .minor = 5,
        .texture_alignment = 512,
        .texture_pitch = 32,
        .processors = 40,
    };
    memset(out, 0, PROPERTIES_BYTES);
    memcpy(out, &t4, sizeof t4);
    return 0;
}

/* The name of the same function in CUDA 12. */
int cudaGetDeviceProperties_v2(void *out, int device) {
    return cudaGetDeviceProperties(out, device);
}

int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) { /* numbers of enum cudaDeviceAttr */
    case 1: *value = 1024; break;      /* threads of a block */
    case 8: *value = 48 << 10; break;  /* shared memory of a block */
    case 10: *value = 32; break;       /* threads of a warp */
    case 16: *value = 40; break;       /* multiprocessors */
    case 39: *value = 1024; break;     /* threads of a multiprocessor */
    case 75: *value = 7; break;        /* compute capability, major */
    case 76: *value = 5; break;        /* compute capability, minor */
    case 81: *value = 64 << 10; break; /* shared memory of a multiprocessor */
    case 97: *value = 64 << 10; break; /* the same, of a block that asks for it */
    default: *value = 1;               /* "yes" */
    }
    return 0;
}

int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaDriverGetVersion(int *version) { *version = VERSION; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = VERSION; return 0; }
size_t cudnnGetVersion(void) { return 92600; } /* 9.26.0 */

/* ---- Its memory ---- */

static int take(void **out, size_t bytes) {
    *out = malloc(bytes ? bytes : 1);
    return *out ? 0 : 2; /* cudaErrorMemoryAllocation */
}

static int give_back(void *memory) {
    free(memory);
    return 0;
}

int cudaMalloc(void **out, size_t bytes) { return take(out, bytes); }
int cudaMallocHost(void **out, size_t bytes) { return take(out, bytes); }
int cudaHostAlloc(void **out, size_t bytes, unsigned flags) { return take(out, bytes); }
int cudaMallocAsync(void **out, size_t bytes, void *s) { return take(out, bytes); }
int cudaMallocFromPoolAsync(void **out, size_t bytes, void *pool, void *stream) {
    return take(out, bytes);
}

int cudaFree(void *memory) { return give_back(memory); }
int cudaFreeHost(void *memory) { return give_back(memory); }
int cudaFreeAsync(void *memory, void *stream) { return give_back(memory); }

int cudaMemGetInfo(size_t *available, size_t *total) {
    *available = 14 * GIB;
    *total = 15 * GIB;
    return 0;
}

int cudaMemcpy(void *to, const void *from, size_t bytes, int kind) {
    memmove(to, from, bytes);
    return 0;
}

int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
    return cudaMemcpy(to, from, bytes, kind);
}

int cudaMemset(void *memory, int value, size_t bytes) {
    memset(memory, value, bytes);
    return 0;
}

int cudaMemsetAsync(void *memory, int value, size_t bytes, void *stream) {
    return cudaMemset(memory, value, bytes);
}

/* ---- What does not return a status, or answers through an argument ---- */

/* Kernels are registered as the wheel's library is loaded: the handle is never read. */
void **__cudaRegisterFatBinary(void *binary) {
    static void *handle[8];
    return handle;
}

int cudaStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }

/* cuFFT's handle is an int, unlike those that build.py makes. */
int cufftCreate(int *handle) { *handle = 1; return 0; }

int cudnnBackendCreateDescriptor(int kind, void **out) { return take(out, 256); }

static const char *const text = "the stand-in CUDA runtime";
const char *cudaGetErrorName(int status) { return text; }
const char *cudaGetErrorString(int status) { return text; }
const char *cudnnGetErrorString(int status) { return text; }
const char *cublasGetStatusName(int status) { return text; }
const char *cublasGetStatusString(int status) { return text; }
const char *nvrtcGetErrorString(int status) { return text; }
void cudnnGetLastErrorString(char *message, size_t bytes) {
    if (bytes) message[0] = 0;
}
