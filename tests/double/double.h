/* What the two halves of the double share. */
#ifndef DOUBLE_H
#define DOUBLE_H

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct stream *CUstream;

/* Gives `stream` (null: the legacy one) a piece of work. */
void double_enqueue(CUstream stream, void (*work)(void *), void *argument);
/* Waits until everything on `stream` is done. */
void double_synchronize(CUstream stream);
/* The card that is current on this thread, -1 for none. */
int double_current(void);

static int double_number(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}

static int double_rank(void) { return double_number("OMPI_COMM_WORLD_RANK", 0); }

/* Whether `variable` (CALL:N) means this call, the `count`-th of `call`, on this rank. */
static int double_meant(const char *variable, const char *call, int count) {
    const char *text = getenv(variable);
    size_t length = strlen(call);
    if (!text || strncmp(text, call, length) || text[length] != ':' || atoi(text + length + 1) != count)
        return 0;
    int rank = double_number("DOUBLE_RANK", -1);
    return rank < 0 || rank == double_rank();
}

/* At the head of every call. */
#define FAULT(call, code)                                                                          \
    do {                                                                                           \
        static int count;                                                                          \
        int number = __sync_add_and_fetch(&count, 1);                                              \
        if (double_meant("DOUBLE_HANG", call, number))                                             \
            for (;;)                                                                               \
                pause();                                                                           \
        if (double_meant("DOUBLE_FAIL", call, number))                                             \
            return code;                                                                           \
    } while (0)

#endif
