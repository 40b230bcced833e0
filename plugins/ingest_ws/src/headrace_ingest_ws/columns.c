/* A gathered batch for Arrow, in one call: columns made one by one from Python cost three times as much as all of this. */

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "wsframes.h"
#include "gather.h"
#include "columns.h"

/* Of headrace.schema.RAW_SCHEMA: device, received, encoding, payload. */
enum { COLUMNS = 4, BUFFERS_MAX = 3, ALIGNED = 64 };

/* The block that all columns share. `held`: arrays in it that are not released. */
typedef struct {
    atomic_int held;
    struct ArrowArray columns[COLUMNS];
    struct ArrowArray *children[COLUMNS];
    const void *buffers[COLUMNS][BUFFERS_MAX];
    const void *none; /* a batch has no nulls, and so no validity */
} block;

/* Called from any thread. */
static void release(struct ArrowArray *array) {
    block *b = array->private_data;
    for (int64_t i = 0; i < array->n_children; i++)
        if (array->children[i]->release) array->children[i]->release(array->children[i]);
    array->release = NULL;
    if (atomic_fetch_sub(&b->held, 1) == 1) free(b);
}

static size_t aligned(size_t size) { return (size + ALIGNED - 1) / ALIGNED * ALIGNED; }

static const void *copied(uint8_t **to, const void *from, size_t size) {
    uint8_t *at = *to;
    if (size) memcpy(at, from, size);
    *to += aligned(size);
    return at;
}

static void describe(struct ArrowArray *array, block *b, size_t rows, const void **buffers, int64_t n_buffers) {
    *array = (struct ArrowArray){
        .length = (int64_t)rows, .n_buffers = n_buffers, .buffers = buffers, .release = release, .private_data = b};
}

int ws_columns(const ws_gatherer *g, uint8_t encoding, struct ArrowArray *out) {
    static const int64_t n_buffers[COLUMNS] = {3, 2, 2, 3};
    static const int32_t no_rows[1] = {0};
    size_t rows = g->rows, offsets = 4 * (rows + 1), head = aligned(sizeof(block));
    block *b = aligned_alloc(
        ALIGNED, head + 2 * aligned(offsets) + aligned(g->device_size) + aligned(8 * rows) + aligned(rows) + aligned(g->payload_size));
    if (!b) return 0;
    memset(b, 0, sizeof *b);
    uint8_t *at = (uint8_t *)b + head;
    b->buffers[0][1] = copied(&at, rows ? g->device_offsets : no_rows, offsets);
    b->buffers[0][2] = copied(&at, g->device, g->device_size);
    b->buffers[1][1] = copied(&at, g->received, 8 * rows);
    b->buffers[2][1] = memset(at, encoding, rows);
    at += aligned(rows);
    b->buffers[3][1] = copied(&at, rows ? g->payload_offsets : no_rows, offsets);
    b->buffers[3][2] = copied(&at, g->payload, g->payload_size);
    for (int i = 0; i < COLUMNS; i++) {
        describe(b->columns + i, b, rows, b->buffers[i], n_buffers[i]);
        b->children[i] = b->columns + i;
    }
    describe(out, b, rows, &b->none, 1);
    out->n_children = COLUMNS;
    out->children = b->children;
    atomic_init(&b->held, 1 + COLUMNS);
    return 1;
}
