/* A test double of libnccl.so.2: collectives between processes through a shared, mapped file. See README.md. */
#define _GNU_SOURCE
#include "double.h"
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>

enum { SUCCESS = 0, SYSTEM_ERROR = 2, INVALID_USAGE = 5, REMOTE_ERROR = 6 };
enum { UINT8 = 1, FLOAT32 = 7, FLOAT64 = 8, BFLOAT16 = 9 };
enum { AVG = 4 };
enum { CHUNK = 1 << 20, MAX_RANKS = 16 };

struct id {
    char path[128];
};

struct shared {
    atomic_int arrived, round;
    /* The collective that each rank calls, encoded as a number. */
    long what[MAX_RANKS];
    char slots[] __attribute__((aligned(64)));
};

struct comm {
    int rank, size;
    struct shared *shared;
    atomic_int lost, gone, collectives;
};

struct collective {
    struct comm *comm;
    CUstream stream;
    const void *from;
    void *to;
    size_t count;
    int kind, root; /* root -1: the average */
    struct collective *next;
};

static __thread int depth;
static __thread struct collective *group, *last;

static void hang(void) {
    for (;;)
        pause();
}

static void barrier(struct comm *comm) {
    struct shared *shared = comm->shared;
    int round = atomic_load(&shared->round);
    if (atomic_fetch_add(&shared->arrived, 1) + 1 == comm->size) {
        atomic_store(&shared->arrived, 0);
        atomic_store(&shared->round, round + 1);
        return;
    }
    while (atomic_load(&shared->round) == round)
        usleep(20);
}

static size_t width(int kind) { return kind == UINT8 ? 1 : kind == FLOAT64 ? 8 : kind == BFLOAT16 ? 2 : 4; }

static float wide(uint16_t narrow) {
    uint32_t bits = (uint32_t)narrow << 16;
    float number;
    memcpy(&number, &bits, 4);
    return number;
}

static uint16_t narrow(float number) {
    uint32_t bits;
    memcpy(&bits, &number, 4);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16; /* to nearest, ties to even; no NaN here */
}

/* The mean of each element over the ranks, by pairwise summation. */
#define MEAN(type, load, store, round)                                                             \
    for (size_t i = 0; i < count; i++) {                                                           \
        type sums[MAX_RANKS];                                                                      \
        for (int rank = 0; rank < size; rank++)                                                    \
            sums[rank] = load(((const type##_at *)(slots + (size_t)rank * CHUNK))[i]);             \
        for (int step = 1; step < size; step *= 2)                                                 \
            for (int rank = 0; rank + step < size; rank += 2 * step)                               \
                sums[rank] = round(sums[rank] + sums[rank + step]);                                \
        ((type##_at *)to)[i] = store(sums[0] / size);                                              \
    }
#define SAME(x) (x)
#define ROUND(x) wide(narrow(x))

static void mean(const char *slots, void *to, size_t count, int kind, int size) {
    if (kind == FLOAT64) {
        typedef double double_at;
        MEAN(double, SAME, SAME, SAME)
    } else if (kind == BFLOAT16) {
        typedef uint16_t float_at;
        MEAN(float, wide, narrow, ROUND)
    } else {
        typedef float float_at;
        MEAN(float, SAME, SAME, SAME)
    }
}

/* Runs on the stream's thread. */
static void run(void *argument) {
    struct collective *all = argument;
    struct comm *comm = all->comm;
    struct shared *shared = comm->shared;
    int number = atomic_fetch_add(&comm->collectives, 1) + 1;
    int rank = double_number("DOUBLE_RANK", -1);
    if (double_number("DOUBLE_LOST", 0) == number && (rank < 0 || rank == comm->rank)) {
        atomic_store(&comm->lost, 1);
        hang();
    }
    shared->what[comm->rank] = (long)all->count * 1024 + all->kind * 32 + all->root + 1;
    barrier(comm);
    for (int other = 0; other < comm->size; other++)
        if (shared->what[other] != shared->what[comm->rank])
            hang();
    size_t bytes = all->count * width(all->kind);
    for (size_t at = 0; at < bytes; at += CHUNK) {
        size_t part = bytes - at < CHUNK ? bytes - at : CHUNK;
        if (all->root < 0 || all->root == comm->rank)
            memcpy(shared->slots + (size_t)comm->rank * CHUNK, (const char *)all->from + at, part);
        barrier(comm);
        if (all->root < 0)
            mean(shared->slots, (char *)all->to + at, part / width(all->kind), all->kind, comm->size);
        else
            memcpy((char *)all->to + at, shared->slots + (size_t)all->root * CHUNK, part);
        barrier(comm);
    }
    barrier(comm);
    free(all);
}

/* As in NCCL, the collectives of a group are enqueued when the group ends. */
static int start(struct collective one) {
    struct collective *all = malloc(sizeof *all);
    *all = one;
    if (depth) {
        if (group)
            last->next = all;
        else
            group = all;
        last = all;
    } else {
        double_enqueue(all->stream, run, all);
    }
    return SUCCESS;
}

int ncclGetVersion(int *version) {
    FAULT("ncclGetVersion", SYSTEM_ERROR);
    char own[64];
    snprintf(own, sizeof own, "DOUBLE_NCCL_VERSION_%d", double_rank());
    *version = double_number(own, double_number("DOUBLE_NCCL_VERSION", 23000));
    return SUCCESS;
}

int ncclGetUniqueId(struct id *id) {
    FAULT("ncclGetUniqueId", SYSTEM_ERROR);
    const char *folder = getenv("TMPDIR");
    int length = snprintf(id->path, sizeof id->path, "%s/double-%d", folder ? folder : "/tmp", getpid());
    return length < (int)sizeof id->path ? SUCCESS : SYSTEM_ERROR;
}

int ncclCommInitRank(struct comm **comm, int size, struct id id, int rank) {
    FAULT("ncclCommInitRank", SYSTEM_ERROR);
    if (double_current() < 0 || size > MAX_RANKS)
        return INVALID_USAGE;
    size_t bytes = sizeof(struct shared) + (size_t)size * CHUNK;
    int file = open(id.path, O_RDWR | O_CREAT, 0600);
    if (file < 0 || ftruncate(file, bytes))
        return SYSTEM_ERROR;
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (memory == MAP_FAILED)
        return SYSTEM_ERROR;
    *comm = calloc(1, sizeof **comm);
    (*comm)->rank = rank;
    (*comm)->size = size;
    (*comm)->shared = memory;
    barrier(*comm);
    return SUCCESS;
}

/* Waits for the other ranks, as NCCL may. */
int ncclCommDestroy(struct comm *comm) {
    FAULT("ncclCommDestroy", SYSTEM_ERROR);
    /* Detects for a while later uses of the communicator, which freed memory would not reveal. */
    atomic_store(&comm->gone, 1);
    usleep(300000);
    barrier(comm);
    return SUCCESS;
}

int ncclCommGetAsyncError(struct comm *comm, int *code) {
    FAULT("ncclCommGetAsyncError", SYSTEM_ERROR);
    if (atomic_load(&comm->gone))
        return INVALID_USAGE;
    *code = atomic_load(&comm->lost) ? REMOTE_ERROR : SUCCESS;
    return SUCCESS;
}

int ncclGroupStart(void) {
    FAULT("ncclGroupStart", SYSTEM_ERROR);
    depth++;
    return SUCCESS;
}

int ncclGroupEnd(void) {
    FAULT("ncclGroupEnd", SYSTEM_ERROR);
    if (depth == 0)
        return INVALID_USAGE;
    if (--depth)
        return SUCCESS;
    while (group) {
        struct collective *all = group;
        group = all->next;
        double_enqueue(all->stream, run, all);
    }
    return SUCCESS;
}

int ncclAllReduce(const void *from, void *to, size_t count, int kind, int operation, struct comm *comm,
                  CUstream stream) {
    FAULT("ncclAllReduce", SYSTEM_ERROR);
    if (operation != AVG || (kind != FLOAT32 && kind != FLOAT64 && kind != BFLOAT16))
        return INVALID_USAGE;
    return start((struct collective){comm, stream, from, to, count, kind, -1, NULL});
}

int ncclBroadcast(const void *from, void *to, size_t count, int kind, int root, struct comm *comm,
                  CUstream stream) {
    FAULT("ncclBroadcast", SYSTEM_ERROR);
    return start((struct collective){comm, stream, from, to, count, kind, root, NULL});
}

const char *ncclGetErrorString(int code) {
    return code == SYSTEM_ERROR    ? "unhandled system error"
           : code == INVALID_USAGE ? "invalid usage"
           : code == REMOTE_ERROR  ? "remote process exited or there was a network error"
                                   : "no error";
}

const char *ncclGetLastError(struct comm *comm) {
    return comm && atomic_load(&comm->lost) ? "the double lost its link" : "";
}
