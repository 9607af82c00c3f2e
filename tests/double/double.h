/* Declarations shared by the two halves of the double. */
#ifndef DOUBLE_H
#define DOUBLE_H

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct stream *CUstream;

/* Enqueues a work item on `stream` (null: the legacy stream). */
void double_enqueue(CUstream stream, void (*work)(void *), void *argument);
/* Waits until all work on `stream` is done. */
void double_synchronize(CUstream stream);
/* The current GPU of this thread, -1 for none. */
int double_current(void);

/* The environment variable `name` as a number. */
static int double_number(const char *name, int default_value) {
    const char *text = getenv(name);
    return text ? atoi(text) : default_value;
}

static int double_rank(void) { return double_number("OMPI_COMM_WORLD_RANK", 0); }

/* Whether `variable` (CALL:N) selects this call, the `count`-th of `call`, on this rank. */
static int double_selected(const char *variable, const char *call, int count) {
    const char *text = getenv(variable);
    size_t length = strlen(call);
    if (!text || strncmp(text, call, length) || text[length] != ':' || atoi(text + length + 1) != count)
        return 0;
    int rank = double_number("DOUBLE_RANK", -1);
    return rank < 0 || rank == double_rank();
}

/* Injects faults; the first statement of every call. */
#define FAULT(call, code)                                                                          \
    do {                                                                                           \
        static int count;                                                                          \
        int number = __sync_add_and_fetch(&count, 1);                                              \
        if (double_selected("DOUBLE_HANG", call, number))                                          \
            for (;;)                                                                               \
                pause();                                                                           \
        if (double_selected("DOUBLE_FAIL", call, number))                                          \
            return code;                                                                           \
    } while (0)

#endif
