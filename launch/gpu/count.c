/* Counts calls of the CUDA runtime that launch work on a GPU, or that make or may make the host wait for it. Preload
 * (LD_PRELOAD) it into `drnas-dist bench`, which reads drnas_runtime_calls; every call is forwarded. Built by
 * gpu-bundle.sh:
 *
 *   cc -O2 -shared -fPIC launch/gpu/count.c -o libcount.so
 *
 * Copies are counted by direction: those from pageable memory block, those from pinned memory and on the device do not;
 * a wait added by libtorch is counted as cudaStreamSynchronize.
 *
 * cuDNN, cuBLAS and NCCL link the runtime statically, so their launches are not counted here. With
 * DRNAS_COUNT_DRIVER=1 driver calls are counted too, through CUPTI: from every library, including those made by the
 * runtime. If CUPTI is missing or refuses, only these counts are absent. They slow the host down: do not use them for
 * timing. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* cudaErrorSharedObjectSymbolNotFound. */
enum { NO_SUCH_FUNCTION = 302 };

/* Passed by value. */
struct dim3 {
    unsigned x, y, z;
};

/* The calls that are only counted and forwarded: name, parameters, arguments. For a kernel launch nvcc 13 generates
 * __cudaLaunchKernel, older versions cudaLaunchKernel; only the meaning of the first parameter differs. */
#define CALLS(CALL)                                                                                                   \
    CALL(__cudaLaunchKernel,                                                                                          \
         (const void *kernel, struct dim3 grid, struct dim3 block, void **arguments, size_t shared, void *stream),    \
         (kernel, grid, block, arguments, shared, stream))                                                            \
    CALL(cudaLaunchKernel,                                                                                            \
         (const void *function, struct dim3 grid, struct dim3 block, void **arguments, size_t shared, void *stream),  \
         (function, grid, block, arguments, shared, stream))                                                          \
    CALL(cudaLaunchCooperativeKernel,                                                                                 \
         (const void *function, struct dim3 grid, struct dim3 block, void **arguments, size_t shared, void *stream),  \
         (function, grid, block, arguments, shared, stream))                                                          \
    CALL(cudaLaunchKernelExC, (const void *config, const void *function, void **arguments),                           \
         (config, function, arguments))                                                                               \
    CALL(cudaGraphLaunch, (void *graph, void *stream), (graph, stream))                                               \
    CALL(cudaMemsetAsync, (void *at, int value, size_t bytes, void *stream), (at, value, bytes, stream))              \
    CALL(cudaMemset, (void *at, int value, size_t bytes), (at, value, bytes))                                         \
    CALL(cudaMemcpy, (void *to, const void *from, size_t bytes, int kind), (to, from, bytes, kind))                   \
    CALL(cudaStreamSynchronize, (void *stream), (stream))                                                             \
    CALL(cudaDeviceSynchronize, (void), ())                                                                           \
    CALL(cudaEventSynchronize, (void *event), (event))                                                                \
    CALL(cudaEventQuery, (void *event), (event))                                                                      \
    CALL(cudaEventRecord, (void *event, void *stream), (event, stream))                                               \
    CALL(cudaEventRecordWithFlags, (void *event, void *stream, unsigned flags), (event, stream, flags))               \
    CALL(cudaStreamWaitEvent, (void *stream, void *event, unsigned flags), (stream, event, flags))                    \
    CALL(cudaMalloc, (void **at, size_t bytes), (at, bytes))                                                          \
    CALL(cudaFree, (void *at), (at))                                                                                  \
    CALL(cudaHostAlloc, (void **at, size_t bytes, unsigned flags), (at, bytes, flags))                                \
    CALL(cudaFreeHost, (void *at), (at))

#define NUMBER(name, parameters, arguments) N_##name,
#define NAME(name, parameters, arguments) #name,

enum {
    HOST_TO_DEVICE, DEVICE_TO_HOST, OTHER_COPY, CALLS(NUMBER)
    /* From here on: driver calls. */
    DRIVER_LAUNCH, DRIVER_GRAPH, DRIVER_HOST_TO_DEVICE, DRIVER_DEVICE_TO_HOST, DRIVER_COPY, DRIVER_SET,
    DRIVER_STREAM, DRIVER_EVENT, DRIVER_CONTEXT, COUNT
};

static const char *const names[COUNT] = {
    "cudaMemcpyAsync, host to device", "cudaMemcpyAsync, device to host", "cudaMemcpyAsync, other", CALLS(NAME)
    "driver: kernel launches", "driver: graph launches", "driver: copies, host to device",
    "driver: copies, device to host", "driver: copies, other", "driver: memory sets",
    "driver: cuStreamSynchronize", "driver: cuEventSynchronize", "driver: cuCtxSynchronize",
};
static unsigned long counts[COUNT];

static void count(int number) { __atomic_fetch_add(&counts[number], 1, __ATOMIC_RELAXED); }

/* -- the driver ---------------------------------------------------------------------------------------------------- */

/* Prefixes of names, which have suffixes like _v2, _ptsz, Async; the first match counts. */
static const struct {
    const char *prefix;
    int number;
} driver_calls[] = {
    {"cuLaunchHostFunc", -1},
    {"cuLaunch", DRIVER_LAUNCH}, /* Kernel, KernelEx, CooperativeKernel */
    {"cuGraphLaunch", DRIVER_GRAPH},
    {"cuMemcpyHtoD", DRIVER_HOST_TO_DEVICE},
    {"cuMemcpyDtoH", DRIVER_DEVICE_TO_HOST},
    {"cuMemcpy", DRIVER_COPY},
    {"cuMemsetD", DRIVER_SET},
    {"cuStreamSynchronize", DRIVER_STREAM},
    {"cuEventSynchronize", DRIVER_EVENT},
    {"cuCtxSynchronize", DRIVER_CONTEXT},
};

/* The first fields of CUpti_CallbackData, cupti_callbacks.h of CUDA 13.0. */
struct callback_data {
    int site; /* 0: on entry */
    const char *function;
};
enum { CUPTI_DRIVER = 1 };

static void driver_call(void *data, int domain, uint32_t number, const void *about) {
    (void)data, (void)number;
    const struct callback_data *call = about;
    if (domain != CUPTI_DRIVER || !call || call->site != 0 || !call->function)
        return;
    for (size_t i = 0; i < sizeof driver_calls / sizeof *driver_calls; i++)
        if (!strncmp(call->function, driver_calls[i].prefix, strlen(driver_calls[i].prefix))) {
            if (driver_calls[i].number >= 0)
                count(driver_calls[i].number);
            return;
        }
}

/* 0: not tried, 1: tried, 2: driver calls are counted. */
static int driver_state;

/* Called for every count, not when this library is loaded: CUPTI's own libraries may not be initialised then. */
static void count_driver(void) {
    int untried = 0;
    if (__atomic_load_n(&driver_state, __ATOMIC_RELAXED) ||
        !__atomic_compare_exchange_n(&driver_state, &untried, 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
        return;
    const char *wanted = getenv("DRNAS_COUNT_DRIVER");
    if (!wanted || strcmp(wanted, "1"))
        return;
    /* Already loaded by libtorch_cpu; only that copy sees libtorch's driver calls. */
    void *cupti = dlopen("libcupti.so.13", RTLD_LAZY | RTLD_NOLOAD);
    if (!cupti)
        cupti = dlopen("libcupti.so.13", RTLD_LAZY);
    if (!cupti)
        return;
    int (*subscribe)(void **, void (*)(void *, int, uint32_t, const void *), void *);
    int (*enable)(uint32_t, void *, int);
    *(void **)&subscribe = dlsym(cupti, "cuptiSubscribe");
    *(void **)&enable = dlsym(cupti, "cuptiEnableDomain");
    void *subscriber = NULL;
    /* CUPTI allows one subscriber per process: an earlier profiler keeps its subscription. */
    if (subscribe && enable && subscribe(&subscriber, driver_call, NULL) == 0 &&
        enable(1, subscriber, CUPTI_DRIVER) == 0)
        __atomic_store_n(&driver_state, 2, __ATOMIC_RELEASE);
}

/* Returns the count of the call `number` and sets its name; `name` stays unset after the last one. */
unsigned long drnas_runtime_calls(unsigned number, const char **name) {
    count_driver();
    unsigned end = __atomic_load_n(&driver_state, __ATOMIC_ACQUIRE) == 2 ? COUNT : DRIVER_LAUNCH;
    if (number >= end)
        return 0;
    *name = names[number];
    return __atomic_load_n(&counts[number], __ATOMIC_RELAXED);
}

/* -- the runtime --------------------------------------------------------------------------------------------------- */

/* Forwards the call to the next library that defines it, looked up once per call site. If none does, the call returns
 * an error: some runtime versions lack some of these functions, and nothing calls them there. */
#define FORWARD(name, parameters, arguments)                                                                          \
    do {                                                                                                              \
        static int(*next) parameters;                                                                                 \
        int(*found) parameters = __atomic_load_n(&next, __ATOMIC_RELAXED);                                            \
        if (!found) {                                                                                                 \
            *(void **)&found = dlsym(RTLD_NEXT, #name);                                                               \
            __atomic_store_n(&next, found, __ATOMIC_RELAXED);                                                         \
        }                                                                                                             \
        return found ? found arguments : NO_SUCH_FUNCTION;                                                            \
    } while (0)

#define DEFINE(name, parameters, arguments)                                                                           \
    int name parameters {                                                                                             \
        count_driver();                                                                                               \
        count(N_##name);                                                                                              \
        FORWARD(name, parameters, arguments);                                                                         \
    }

CALLS(DEFINE)

int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
    count_driver();
    count(kind == 1 ? HOST_TO_DEVICE : kind == 2 ? DEVICE_TO_HOST : OTHER_COPY);
    FORWARD(cudaMemcpyAsync, (void *to, const void *from, size_t bytes, int kind, void *stream),
            (to, from, bytes, kind, stream));
}
