/* What Python sees of columns.c; cffi reads this file too, so it holds plain declarations only (it skips lines that begin with #). */
#ifndef HEADRACE_COLUMNS_H
#define HEADRACE_COLUMNS_H

/* Arrow's C data interface (https://arrow.apache.org/docs/format/CDataInterface.html). */
struct ArrowArray {
    int64_t length, null_count, offset, n_buffers, n_children;
    const void **buffers;
    struct ArrowArray **children;
    struct ArrowArray *dictionary;
    void (*release)(struct ArrowArray *);
    void *private_data;
};

/* The rows of the batch that gathers as a raw batch, a copy in one block of memory, all of this encoding; 0 when there is no memory. */
int ws_columns(const ws_gatherer *g, uint8_t encoding, struct ArrowArray *out);

#endif
