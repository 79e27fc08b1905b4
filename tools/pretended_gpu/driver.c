/* A CUDA driver without a GPU: what is compiled is loaded and looked into, what is launched is checked and not
   run. cuInit fails, so that NVRTC, which asks too, works as where there is none. */
#define _GNU_SOURCE
#include <elf.h>
#include <stdlib.h>
#include <string.h>

typedef struct { char *code; size_t size; } Module;
typedef struct { char name[1000]; unsigned shared; } Function;
enum { MAX_DYNAMIC_SHARED_SIZE = 8, INVALID = 1, NO_DEVICE = 100, NOT_A_MODULE = 200, NOT_FOUND = 500 };
static int context;

int cuInit(unsigned flags) { return NO_DEVICE; }
int cuGetErrorName(int error, const char **name) {
    *name = error == NOT_FOUND ? "CUDA_ERROR_NOT_FOUND" : "CUDA_ERROR";
    return 0;
}
int cuGetErrorString(int error, const char **text) { *text = "of no GPU at all"; return 0; }
int cuCtxGetCurrent(void **current) { *current = &context; return 0; }
int cuCtxSetCurrent(void *current) { return 0; }
int cuCtxGetDevice(int *device) { *device = 0; return 0; }
int cuDevicePrimaryCtxRelease(int device) { return 0; }
int cuStreamGetCtx(void *stream, void **current) { *current = &context; return 0; }

int cuModuleLoadData(void **module, const void *image) {
    const Elf64_Ehdr *header = image;
    if (memcmp(image, ELFMAG, SELFMAG)) return NOT_A_MODULE;
    const size_t sections = header->e_shoff + (size_t)header->e_shnum * header->e_shentsize;
    const size_t segments = header->e_phoff + (size_t)header->e_phnum * header->e_phentsize;
    Module *made = malloc(sizeof *made);
    made->size = sections > segments ? sections : segments;
    made->code = memcpy(malloc(made->size), image, made->size);
    *module = made;
    return 0;
}
int cuModuleUnload(void *module) { return 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) {
    const Module *in = module;
    Function *made = malloc(sizeof *made);
    if (strlen(name) >= sizeof made->name || !memmem(in->code, in->size, name, strlen(name) + 1)) return NOT_FOUND;
    strcpy(made->name, name);
    made->shared = 48 << 10;
    *function = made;
    return 0;
}
int cuModuleGetGlobal(void **pointer, size_t *size, void *module, const char *name) {
    *pointer = calloc(1, 4096);
    if (size) *size = 4096;
    return 0;
}
int cuFuncGetAttribute(int *value, int attribute, void *function) { *value = attribute ? 0 : 1024; return 0; }
int cuFuncSetAttribute(Function *function, int attribute, int value) {
    if (attribute != MAX_DYNAMIC_SHARED_SIZE) return 0;
    if (value > 227 << 10) return INVALID;
    function->shared = value;
    return 0;
}
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *function, int threads, size_t shared) {
    *blocks = 2;
    return 0;
}

int cuLaunchKernel(Function *function, unsigned x, unsigned y, unsigned z, unsigned threads_x, unsigned threads_y,
                   unsigned threads_z, unsigned shared, void *stream, void **arguments, void **extra) {
    const unsigned long long threads = (unsigned long long)threads_x * threads_y * threads_z;
    if (!x || !y || !z || x > 2147483647u || y > 65535 || z > 65535 || !threads || threads > 1024
        || shared > function->shared)
        return INVALID;
    return 0;
}
