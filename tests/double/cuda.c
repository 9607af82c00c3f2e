/* A test double of libcuda.so.1: GPUs with host memory, streams that run late. See README.md. */
#define _GNU_SOURCE
#include "double.h"
#include <pthread.h>
#include <stdio.h>
#include <time.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, INVALID_CONTEXT = 201, NOT_READY = 600, LAUNCH_FAILED = 719 };
enum { NON_BLOCKING = 1 };

/* A point in the work of a stream; each event record creates one. */
struct mark {
    int done, holders;
    struct timespec when;
};

struct work {
    struct work *next;
    void (*run)(void *);
    void *argument;
    struct mark *wait, *reached;
};

struct stream {
    struct work *first, **last;
    pthread_t thread;
    int late_us, blocking, host;
    struct mark *tail; /* the end of its queue */
    struct stream *next;
};

struct event {
    struct mark *mark;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct stream *streams; /* all except the legacy stream */
static __thread int current;   /* GPU + 1 */

static void drop(struct mark *mark) {
    if (mark && --mark->holders == 0)
        free(mark);
}

static struct mark *hold(struct mark *mark) {
    if (mark)
        mark->holders++;
    return mark;
}

static void reach(struct mark *mark) {
    if (!mark)
        return;
    mark->done = 1;
    clock_gettime(CLOCK_MONOTONIC, &mark->when);
    drop(mark);
    pthread_cond_broadcast(&changed);
}

static void await(struct mark *mark) {
    while (mark && !mark->done)
        pthread_cond_wait(&changed, &lock);
    drop(mark);
}

static void *run_stream(void *argument) {
    struct stream *stream = argument;
    pthread_mutex_lock(&lock);
    for (;;) {
        while (!stream->first)
            pthread_cond_wait(&changed, &lock);
        struct work *work = stream->first;
        if (!(stream->first = work->next))
            stream->last = &stream->first;
        await(work->wait);
        if (work->run) {
            pthread_mutex_unlock(&lock);
            usleep(stream->late_us);
            work->run(work->argument);
            pthread_mutex_lock(&lock);
        }
        reach(work->reached);
        free(work);
    }
    return NULL;
}

static void put(struct stream *stream, void (*run)(void *), void *argument, struct mark *wait,
                struct mark *reached) {
    if (stream->host) {
        await(wait);
        if (run) {
            pthread_mutex_unlock(&lock);
            run(argument);
            pthread_mutex_lock(&lock);
        }
        reach(reached);
        return;
    }
    struct work *work = calloc(1, sizeof *work);
    *work = (struct work){NULL, run, argument, wait, reached};
    *stream->last = work;
    stream->last = &work->next;
    pthread_cond_broadcast(&changed);
}

/* Updates `stream->tail` to the current end of the queue. */
static void mark_tail(struct stream *stream) {
    struct mark *mark = calloc(1, sizeof *mark);
    mark->holders = 2; /* the tail, and the work that reaches it */
    drop(stream->tail);
    stream->tail = mark;
    put(stream, NULL, NULL, NULL, mark);
}

static struct stream *new_stream(const char *late, int blocking, int host) {
    struct stream *stream = calloc(1, sizeof *stream);
    stream->last = &stream->first;
    stream->late_us = double_number(late, 1000);
    stream->blocking = blocking;
    stream->host = host;
    pthread_create(&stream->thread, NULL, run_stream, stream);
    pthread_detach(stream->thread);
    return stream;
}

static struct stream *legacy(void) {
    static struct stream *stream;
    if (!stream) {
        const char *kind = getenv("DOUBLE_LEGACY");
        stream = new_stream("DOUBLE_LATE_LEGACY_US", 0, kind && !strcmp(kind, "host"));
    }
    return stream;
}

/* Enqueues work on a stream; the legacy stream and blocking streams wait for each other. */
static void enqueue(struct stream *stream, void (*run)(void *), void *argument, struct mark *wait,
                 struct mark *reached) {
    struct stream *zero = legacy();
    if (!stream)
        stream = zero;
    if (stream == zero) {
        for (struct stream *other = streams; other; other = other->next)
            if (other->blocking)
                put(stream, NULL, NULL, hold(other->tail), NULL);
    } else if (stream->blocking) {
        put(stream, NULL, NULL, hold(zero->tail), NULL);
    }
    put(stream, run, argument, wait, reached);
    mark_tail(stream);
}

void double_enqueue(CUstream stream, void (*work)(void *), void *argument) {
    pthread_mutex_lock(&lock);
    enqueue(stream, work, argument, NULL, NULL);
    pthread_mutex_unlock(&lock);
}

void double_synchronize(CUstream stream) {
    pthread_mutex_lock(&lock);
    if (!stream)
        stream = legacy();
    await(hold(stream->tail));
    pthread_mutex_unlock(&lock);
}

int double_current(void) { return current - 1; }

/* The physical number of the GPU that this process sees as `index`, -1 for none. */
static int gpu(int index) {
    const char *list = getenv("CUDA_VISIBLE_DEVICES");
    int num_gpus = double_number("DOUBLE_CARDS", 8);
    if (!list)
        return index < num_gpus ? index : -1;
    while (*list) {
        char *end;
        int number = strtol(list, &end, 10);
        if (end == list || number >= num_gpus)
            return -1;
        if (index-- == 0)
            return number;
        list = *end == ',' ? end + 1 : end;
    }
    return -1;
}

int cuInit(unsigned flags) {
    (void)flags;
    FAULT("cuInit", LAUNCH_FAILED);
    return SUCCESS;
}

int cuDriverGetVersion(int *version) {
    FAULT("cuDriverGetVersion", LAUNCH_FAILED);
    *version = 13000;
    return SUCCESS;
}

int cuDeviceGetCount(int *count) {
    FAULT("cuDeviceGetCount", LAUNCH_FAILED);
    for (*count = 0; gpu(*count) >= 0; ++*count)
        ;
    return SUCCESS;
}

int cuDeviceGet(int *device, int ordinal) {
    FAULT("cuDeviceGet", LAUNCH_FAILED);
    *device = gpu(ordinal);
    return *device < 0 ? INVALID_VALUE : SUCCESS;
}

int cuDeviceGetName(char *name, int length, int device) {
    FAULT("cuDeviceGetName", LAUNCH_FAILED);
    snprintf(name, length, "Double %d", device);
    return SUCCESS;
}

/* Differs between GPUs, so that a context on the wrong GPU is detected. */
static size_t memory_of(int device) { return (size_t)(80 + device) << 30; }

int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    FAULT("cuDeviceTotalMem", LAUNCH_FAILED);
    *bytes = memory_of(device);
    return SUCCESS;
}

int cuDeviceGetUuid_v2(char *uuid, int device) {
    FAULT("cuDeviceGetUuid", LAUNCH_FAILED);
    memset(uuid, 0xd0, 16);
    uuid[15] += device;
    return SUCCESS;
}

int cuDeviceGetPCIBusId(char *text, int length, int device) {
    FAULT("cuDeviceGetPCIBusId", LAUNCH_FAILED);
    snprintf(text, length, "0000:%02x:00.0", 16 + device);
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    FAULT("cuDevicePrimaryCtxRetain", LAUNCH_FAILED);
    *context = (void *)(size_t)(device + 1);
    return SUCCESS;
}

int cuCtxSetCurrent(void *context) {
    FAULT("cuCtxSetCurrent", LAUNCH_FAILED);
    current = (int)(size_t)context;
    return SUCCESS;
}

int cuMemGetInfo_v2(size_t *free, size_t *total) {
    FAULT("cuMemGetInfo", LAUNCH_FAILED);
    if (!current)
        return INVALID_CONTEXT;
    *total = memory_of(current - 1);
    *free = *total / 4;
    return SUCCESS;
}

struct copy {
    void *to;
    const void *from;
    size_t bytes;
};

static void run_copy(void *argument) {
    struct copy *copy = argument;
    memcpy(copy->to, copy->from, copy->bytes);
    free(copy);
}

/* Behaves like a copy from pinned memory: reads the source when the stream reaches it. */
int cuMemcpyHtoDAsync_v2(unsigned long long to, const void *from, size_t bytes, CUstream stream) {
    FAULT("cuMemcpyHtoDAsync", LAUNCH_FAILED);
    struct copy *copy = malloc(sizeof *copy);
    *copy = (struct copy){(void *)(size_t)to, from, bytes};
    pthread_mutex_lock(&lock);
    enqueue(stream, run_copy, copy, NULL, NULL);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

int cuStreamCreate(CUstream *stream, unsigned flags) {
    FAULT("cuStreamCreate", LAUNCH_FAILED);
    if (!current)
        return INVALID_CONTEXT;
    pthread_mutex_lock(&lock);
    *stream = new_stream("DOUBLE_LATE_US", !(flags & NON_BLOCKING), 0);
    (*stream)->next = streams;
    streams = *stream;
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

/* As on a GPU, pending work is still executed. */
int cuStreamDestroy_v2(CUstream stream) {
    FAULT("cuStreamDestroy", LAUNCH_FAILED);
    return stream ? SUCCESS : INVALID_VALUE;
}

int cuStreamWaitEvent(CUstream stream, struct event *event, unsigned flags) {
    (void)flags;
    FAULT("cuStreamWaitEvent", LAUNCH_FAILED);
    pthread_mutex_lock(&lock);
    /* Waits for the latest record so far; later records have no effect. */
    enqueue(stream, NULL, NULL, hold(event->mark), NULL);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

int cuEventCreate(struct event **event, unsigned flags) {
    (void)flags;
    FAULT("cuEventCreate", LAUNCH_FAILED);
    if (!current)
        return INVALID_CONTEXT;
    *event = calloc(1, sizeof **event);
    return SUCCESS;
}

int cuEventRecord(struct event *event, CUstream stream) {
    FAULT("cuEventRecord", LAUNCH_FAILED);
    pthread_mutex_lock(&lock);
    struct mark *mark = calloc(1, sizeof *mark);
    mark->holders = 2; /* the event, and the work that reaches it */
    drop(event->mark);
    event->mark = mark;
    enqueue(stream, NULL, NULL, NULL, mark);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

int cuEventQuery(struct event *event) {
    FAULT("cuEventQuery", LAUNCH_FAILED);
    pthread_mutex_lock(&lock);
    int done = !event->mark || event->mark->done;
    pthread_mutex_unlock(&lock);
    return done ? SUCCESS : NOT_READY;
}

int cuEventSynchronize(struct event *event) {
    FAULT("cuEventSynchronize", LAUNCH_FAILED);
    pthread_mutex_lock(&lock);
    await(hold(event->mark));
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

int cuEventElapsedTime_v2(float *ms, struct event *start, struct event *end) {
    FAULT("cuEventElapsedTime", LAUNCH_FAILED);
    pthread_mutex_lock(&lock);
    int ready = start->mark && end->mark && start->mark->done && end->mark->done;
    if (ready)
        *ms = (end->mark->when.tv_sec - start->mark->when.tv_sec) * 1e3f +
              (end->mark->when.tv_nsec - start->mark->when.tv_nsec) * 1e-6f;
    pthread_mutex_unlock(&lock);
    return ready ? SUCCESS : NOT_READY;
}

int cuEventDestroy_v2(struct event *event) {
    FAULT("cuEventDestroy", LAUNCH_FAILED);
    pthread_mutex_lock(&lock);
    drop(event->mark);
    pthread_mutex_unlock(&lock);
    free(event);
    return SUCCESS;
}

int cuGetErrorString(int code, const char **text) {
    if (getenv("DOUBLE_WORDLESS"))
        return INVALID_VALUE;
    *text = code == LAUNCH_FAILED     ? "unspecified launch failure"
            : code == INVALID_CONTEXT ? "invalid device context"
                                      : NULL;
    return *text ? SUCCESS : INVALID_VALUE;
}
