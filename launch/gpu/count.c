/* Counts calls of the CUDA runtime by which the host waits for a card, or might. To be preloaded (LD_PRELOAD) into
 * `drnas-dist bench`, which asks drnas_runtime_calls; every call is handed on. Built by gpu-bundle.sh:
 *
 *   cc -O2 -shared -fPIC launch/gpu/count.c -o libgpu-count.so
 *
 * Copies are counted by direction: from pageable memory they wait, from pinned memory and on the card they do not; a
 * wait that libtorch adds is counted as cudaStreamSynchronize. The driver's own calls are not seen. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>

enum { HOST_TO_CARD, CARD_TO_HOST, ON_CARD, STREAM, DEVICE, EVENT, COPY, MALLOC, FREE, COUNT };

static const char *const names[COUNT] = {
    "cudaMemcpyAsync, host to card", "cudaMemcpyAsync, card to host", "cudaMemcpyAsync, other",
    "cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy",
    "cudaMalloc", "cudaFree",
};
static unsigned long counts[COUNT];

unsigned long drnas_runtime_calls(unsigned number, const char **name) {
    if (number >= COUNT)
        return 0;
    *name = names[number];
    return __atomic_load_n(&counts[number], __ATOMIC_RELAXED);
}

static void count(int number) { __atomic_fetch_add(&counts[number], 1, __ATOMIC_RELAXED); }

/* Looked up once for each place. */
#define NEXT(name, ...)                                                                            \
    ({                                                                                             \
        static int (*next)(__VA_ARGS__);                                                           \
        if (!next)                                                                                 \
            next = (int (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name);                                   \
        next;                                                                                      \
    })

int cudaStreamSynchronize(void *stream) {
    count(STREAM);
    return NEXT("cudaStreamSynchronize", void *)(stream);
}

int cudaDeviceSynchronize(void) {
    count(DEVICE);
    return NEXT("cudaDeviceSynchronize", void)();
}

int cudaEventSynchronize(void *event) {
    count(EVENT);
    return NEXT("cudaEventSynchronize", void *)(event);
}

int cudaMemcpy(void *to, const void *from, size_t bytes, int kind) {
    count(COPY);
    return NEXT("cudaMemcpy", void *, const void *, size_t, int)(to, from, bytes, kind);
}

int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
    count(kind == 1 ? HOST_TO_CARD : kind == 2 ? CARD_TO_HOST : ON_CARD);
    return NEXT("cudaMemcpyAsync", void *, const void *, size_t, int, void *)(to, from, bytes, kind, stream);
}

int cudaMalloc(void **at, size_t bytes) {
    count(MALLOC);
    return NEXT("cudaMalloc", void **, size_t)(at, bytes);
}

int cudaFree(void *at) {
    count(FREE);
    return NEXT("cudaFree", void *)(at);
}
