/* Counts calls of the CUDA runtime that launch work on a card, that make the host wait for it, or might. To be
 * preloaded (LD_PRELOAD) into `drnas-dist bench`, which asks drnas_runtime_calls; every call is handed on. Built by
 * gpu-bundle.sh:
 *
 *   cc -O2 -shared -fPIC launch/gpu/count.c -o libcount.so
 *
 * Copies are counted by direction: from pageable memory they wait, from pinned memory and on the card they do not; a
 * wait that libtorch adds is counted as cudaStreamSynchronize.
 *
 * cuDNN, cuBLAS and NCCL have the runtime linked in statically, so their launches are not seen here. With
 * DRNAS_COUNT_DRIVER=1 the calls of the driver are counted too, by CUPTI: from every library, those that the runtime
 * makes included. Where CUPTI is missing or refuses, these counts are absent and all else goes on. They slow the host
 * down: use them for counts, not for times. */
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

/* The calls that are only counted and handed on: name, parameters, arguments. What nvcc 13 generates for a kernel
 * launch is __cudaLaunchKernel, an older nvcc's is cudaLaunchKernel: the same but for what the first parameter is. */
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
    HOST_TO_CARD, CARD_TO_HOST, ON_CARD, CALLS(NUMBER)
    /* The rest is of the driver. */
    DRIVER_LAUNCH, DRIVER_GRAPH, DRIVER_HOST_TO_CARD, DRIVER_CARD_TO_HOST, DRIVER_COPY, DRIVER_SET,
    DRIVER_STREAM, DRIVER_EVENT, DRIVER_CONTEXT, COUNT
};

static const char *const names[COUNT] = {
    "cudaMemcpyAsync, host to card", "cudaMemcpyAsync, card to host", "cudaMemcpyAsync, other", CALLS(NAME)
    "driver: kernel launches", "driver: graph launches", "driver: copies, host to card",
    "driver: copies, card to host", "driver: copies, other", "driver: memory sets",
    "driver: cuStreamSynchronize", "driver: cuEventSynchronize", "driver: cuCtxSynchronize",
};
static unsigned long counts[COUNT];

static void count(int number) { __atomic_fetch_add(&counts[number], 1, __ATOMIC_RELAXED); }

/* -- the driver ---------------------------------------------------------------------------------------------------- */

/* Beginnings of names, since they have endings like _v2, _ptsz, Async; the first one that fits counts. */
static const struct {
    const char *start;
    int number;
} driver_calls[] = {
    {"cuLaunchHostFunc", -1},
    {"cuLaunch", DRIVER_LAUNCH}, /* Kernel, KernelEx, CooperativeKernel */
    {"cuGraphLaunch", DRIVER_GRAPH},
    {"cuMemcpyHtoD", DRIVER_HOST_TO_CARD},
    {"cuMemcpyDtoH", DRIVER_CARD_TO_HOST},
    {"cuMemcpy", DRIVER_COPY},
    {"cuMemsetD", DRIVER_SET},
    {"cuStreamSynchronize", DRIVER_STREAM},
    {"cuEventSynchronize", DRIVER_EVENT},
    {"cuCtxSynchronize", DRIVER_CONTEXT},
};

/* The head of CUpti_CallbackData, cupti_callbacks.h of CUDA 13.0. */
struct callback_data {
    int site; /* 0: the call begins */
    const char *function;
};
enum { CUPTI_DRIVER = 1 };

static void driver_call(void *data, int domain, uint32_t number, const void *about) {
    (void)data, (void)number;
    const struct callback_data *call = about;
    if (domain != CUPTI_DRIVER || !call || call->site != 0 || !call->function)
        return;
    for (size_t i = 0; i < sizeof driver_calls / sizeof *driver_calls; i++)
        if (!strncmp(call->function, driver_calls[i].start, strlen(driver_calls[i].start))) {
            if (driver_calls[i].number >= 0)
                count(driver_calls[i].number);
            return;
        }
}

/* 0: not tried, 1: tried, 2: the driver's calls are counted. */
static int driver_state;

/* Called with every count, not when this library is loaded: CUPTI's own libraries may not be ready then. */
static void count_driver(void) {
    int untried = 0;
    if (__atomic_load_n(&driver_state, __ATOMIC_RELAXED) ||
        !__atomic_compare_exchange_n(&driver_state, &untried, 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
        return;
    const char *wanted = getenv("DRNAS_COUNT_DRIVER");
    if (!wanted || strcmp(wanted, "1"))
        return;
    /* libtorch_cpu needs it, so it is there, and only the one that is there can see libtorch's driver. */
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
    /* There is one subscriber in a process: a profiler that came first stays. */
    if (subscribe && enable && subscribe(&subscriber, driver_call, NULL) == 0 &&
        enable(1, subscriber, CUPTI_DRIVER) == 0)
        __atomic_store_n(&driver_state, 2, __ATOMIC_RELEASE);
}

/* The count of a number, and its name; no name: there are no more. */
unsigned long drnas_runtime_calls(unsigned number, const char **name) {
    count_driver();
    unsigned end = __atomic_load_n(&driver_state, __ATOMIC_ACQUIRE) == 2 ? COUNT : DRIVER_LAUNCH;
    if (number >= end)
        return 0;
    *name = names[number];
    return __atomic_load_n(&counts[number], __ATOMIC_RELAXED);
}

/* -- the runtime --------------------------------------------------------------------------------------------------- */

/* Hands the call on to the next library that has it; looked up once for each place. A function that is in no library is
 * an error of the call, not of this library: older and newer runtimes lack some, and nobody calls those. */
#define HAND_ON(name, parameters, arguments)                                                                          \
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
        HAND_ON(name, parameters, arguments);                                                                         \
    }

CALLS(DEFINE)

int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
    count_driver();
    count(kind == 1 ? HOST_TO_CARD : kind == 2 ? CARD_TO_HOST : ON_CARD);
    HAND_ON(cudaMemcpyAsync, (void *to, const void *from, size_t bytes, int kind, void *stream),
            (to, from, bytes, kind, stream));
}
