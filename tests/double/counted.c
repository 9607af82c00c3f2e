/* Test doubles of libcudart.so.13 (-DRUNTIME) and libcupti.so.13 (-DCUPTI) for the test of launch/gpu/count.c, and the
 * program that calls them. Return values are hashes of all arguments, so that a lost argument is detected. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct {
    unsigned x, y, z;
} dim3;

int __cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared, void *stream);
int cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared, void *stream);
int cudaLaunchKernelExC(const void *config, const void *function, void **arguments);
int cudaMemsetAsync(void *at, int value, size_t bytes, void *stream);
int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream);
int cudaDeviceSynchronize(void);
int cudaStreamWaitEvent(void *stream, void *event, unsigned flags);

#ifdef RUNTIME

static int mixed(int count, const uint64_t *values) {
    int sum = 1;
    for (int i = 0; i < count; i++)
        sum = sum * 31 + (int)values[i];
    return sum & 0xffffff;
}
#define MIXED(...) mixed(sizeof((uint64_t[]){__VA_ARGS__}) / 8, (uint64_t[]){__VA_ARGS__})
#define P(pointer) ((uint64_t)(uintptr_t)(pointer))

/* As in the real library, the inner launch is internal and not a second call to count. */
static int launch(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared, void *stream) {
    return MIXED(P(function), grid.x, grid.y, grid.z, block.x, block.y, block.z, P(arguments), shared, P(stream));
}
int __cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared, void *stream) {
    return launch(kernel, grid, block, arguments, shared, stream);
}
int cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared, void *stream) {
    return launch(function, grid, block, arguments, shared, stream);
}
int cudaLaunchKernelExC(const void *config, const void *function, void **arguments) {
    return MIXED(P(config), P(function), P(arguments));
}
int cudaMemsetAsync(void *at, int value, size_t bytes, void *stream) {
    return MIXED(P(at), value, bytes, P(stream));
}
int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
    return MIXED(P(to), P(from), bytes, kind, P(stream));
}
int cudaDeviceSynchronize(void) { return 77; }
int cudaStreamWaitEvent(void *stream, void *event, unsigned flags) { return MIXED(P(stream), P(event), flags); }

#elif defined CUPTI

/* The fields of CUpti_CallbackData, cupti_callbacks.h of CUDA 13.0. */
struct data {
    int site;
    const char *function;
    const void *parameters;
    void *returned;
    const char *symbol;
    void *context;
    uint32_t context_uid;
    uint64_t *correlation_data;
    uint32_t correlation;
};
static void (*callback)(void *, int, uint32_t, const void *);
static void *user;
static int enabled;

int cuptiSubscribe(void **subscriber, void (*function)(void *, int, uint32_t, const void *), void *data) {
    if (getenv("DOUBLE_NO_SUBSCRIBER"))
        return 39; /* CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED */
    callback = function;
    user = data;
    *subscriber = &callback;
    return 0;
}
int cuptiEnableDomain(uint32_t enable, void *subscriber, int domain) {
    if (subscriber != &callback)
        return 1;
    enabled = domain == 1 && enable;
    return 0;
}
/* Makes the callbacks of CUPTI for the driver call `function`: one on entry, one on exit. */
void double_driver_call(const char *function) {
    for (int site = 0; site < 2; site++) {
        struct data data = {.site = site, .function = function};
        if (enabled)
            callback(user, 1, 307, &data);
    }
}

#else

int main(void) {
    int here[8];
    const dim3 grid = {2, 3, 4}, block = {5, 6, 7};
#define AT(number) ((void *)(uintptr_t)(number))
    for (int i = 0; i < 3; i++)
        printf("%d\n", __cudaLaunchKernel(AT(11), grid, block, AT(12), 13, AT(14)));
    printf("%d\n", cudaLaunchKernel(AT(21), grid, block, AT(22), 23, AT(24)));
    for (int i = 0; i < 2; i++)
        printf("%d\n", cudaLaunchKernelExC(AT(31), AT(32), AT(33)));
    printf("%d\n", cudaMemsetAsync(AT(41), 42, 43, AT(44)));
    for (int kind = 1; kind < 4; kind++)
        printf("%d\n", cudaMemcpyAsync(AT(51), AT(52), 53, kind, AT(54)));
    printf("%d\n", cudaDeviceSynchronize());
    printf("%d\n", cudaStreamWaitEvent(AT(61), AT(62), 63));

    unsigned long (*calls)(unsigned, const char **);
    *(void **)&calls = dlsym(RTLD_DEFAULT, "drnas_runtime_calls");
    if (!calls)
        return 0;
    /* Calls a function that the runtime lacks. */
    int (*missing)(void *);
    *(void **)&missing = dlsym(RTLD_DEFAULT, "cudaFreeHost");
    fprintf(stderr, "missing = %d\n", missing(here));
    void *cupti = dlopen("libcupti.so.13", RTLD_LAZY | RTLD_NOLOAD);
    if (cupti) {
        void (*driver_call)(const char *);
        *(void **)&driver_call = dlsym(cupti, "double_driver_call");
        const char *const functions[] = {
            "cuLaunchKernel",   "cuLaunchKernelEx_ptsz", "cuMemcpyHtoDAsync_v2", "cuMemAlloc_v2",
            "cuLaunchHostFunc", "cuMemcpyDtoHAsync_v2",  "cuMemsetD8Async",      "cuGraphLaunch",
            "cuLaunchKernel",   "cuMemcpyDtoDAsync_v2",  "cuStreamSynchronize",
        };
        for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
            driver_call(functions[i]);
    }
    for (unsigned number = 0;; number++) {
        const char *name = NULL;
        unsigned long count = calls(number, &name);
        if (!name)
            return 0;
        fprintf(stderr, "%s = %lu\n", name, count);
    }
}

#endif
