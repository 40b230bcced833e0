/* What Python sees of gather.c; cffi reads this file too, so it holds plain declarations only (it skips lines that begin with #). */
#ifndef HEADRACE_GATHER_H
#define HEADRACE_GATHER_H

/* What a device may still send, over all its connections; rates.py says how. */
typedef struct {
    double events_per_s, bytes_per_s, burst_s; /* its limit */
    double events, bytes;                      /* the levels */
    double now;                                /* when they were last filled, in monotonic seconds */
} ws_rate;

/* One WebSocket connection of a device. Python makes it, and reads and writes the counts as well. */
typedef struct {
    uint64_t count;        /* number of the last message that was taken or refused */
    uint64_t settled;      /* all up to here are durable or were refused */
    uint64_t acked;        /* all up to here are acknowledged */
    uint64_t serial;       /* tells it from a later connection on the same descriptor */
    uint64_t later;        /* the batch with this number is Python's: rows of one connection stay in their order */
    uint64_t chunk_batch;  /* the batch that has a chunk of it, and which one that is */
    size_t chunk;
    uint64_t gathered;     /* the last message that was taken here */
    uint64_t committed;    /* of a session: all up to here stand in an origin of a batch that was handed over */
    double heard_at;       /* when it last sent something, in monotonic seconds */
    double calm_at;        /* when it was last found calm (ws_calm) */
    double look_at;        /* when Python has to look after it, even if all is plain until then */
    uint32_t window;       /* most messages without an ack */
    uint32_t origin_bytes; /* what a commit takes for it beside its rows; 0: it is no member of a session */
    uint8_t gathers;       /* its messages may be taken here */
    uint8_t special;       /* Python writes its acks */
    uint8_t paused;        /* Python has read on ahead: what comes now belongs behind that */
    uint8_t noted;         /* of a session: its origin has a note, which Python makes */
    ws_parser *parser;
    ws_rate *rate; /* NULL: any */
    size_t device_size;
    size_t name_size;
    uint8_t name[];        /* of the session; it begins with the device's, and is that where there is no session */
} ws_connection;

/* Messages of one connection in one batch: its rows begin at `row`, its last message is `last`. */
typedef struct {
    uint64_t serial, last;
    int32_t descriptor;
    uint32_t row;
    int32_t member;
    int32_t unused;
} ws_chunk;

/* The batch that gathers: the buffers of Arrow arrays, and who is in it. */
typedef struct {
    uint64_t number;
    size_t rows, payload_size, device_size, origin_size, chunk_count;
    size_t member_count, member_size; /* chunks of sessions, and the bytes of their names */
    size_t row_room, payload_room, device_room, chunk_room;
    int32_t *payload_offsets, *device_offsets; /* rows + 1 each */
    int64_t *received;
    uint8_t *payload, *device;
    ws_chunk *chunks;
    ws_connection **table; /* by descriptor */
    size_t table_size;
    int more; /* as many descriptors were ready in the last read as it looks at: there may be others */
} ws_gatherer;

/* What was read and is left to Python. event -1: `size` bytes at `start` of the buffer, not parsed (0: end, INT64_MIN:
 * writable, else -errno); otherwise what ws_parse found there, without the run when that was gathered (run_count 0). */
typedef struct {
    int64_t descriptor, start, size, event, run_bytes, run_count, consumed, code, data, data_size, assembled;
} ws_find;

ws_gatherer *ws_gatherer_new(void);
void ws_gatherer_delete(ws_gatherer *g);
ws_connection *ws_connection_new(const uint8_t *name, size_t name_size, size_t device_size, ws_parser *parser, uint32_t window,
                                 uint64_t start);
void ws_connection_delete(ws_connection *c);

/* Takes so much from the levels when all of it fits, else nothing; whether it did. */
int ws_rate_take(ws_rate *rate, double events, double bytes, double now);

/* Puts a connection (NULL: none) at its descriptor; 0 when there is no memory. */
int ws_place(ws_gatherer *g, int descriptor, ws_connection *c);

/* Notes whether a connection may be left alone in this round of looking after all of them: everything of it is plain, it is owed
 * nothing, no message of it is unfinished, and its time has not come. */
int ws_calm(ws_connection *c, double now);

/* The descriptors from `begin` to before `end` whose connections are not calm, with room for so many; their number. */
size_t ws_restless(const ws_gatherer *g, size_t begin, size_t end, double now, int32_t *found);

/* Reads from what `epoll` says is ready, at most `events_max` descriptors, one behind the other into `buffer`. Gathers what
 * it may while the batch has fewer than `rows_max` rows and `bytes_max` bytes. `now`: in monotonic seconds. Returns the number of
 * finds, or -errno. */
int ws_read(ws_gatherer *g, int epoll, int events_max, uint8_t *buffer, size_t size, size_t read_max, size_t rows_max, size_t bytes_max,
            int64_t received_us, double now, ws_find *finds);

/* Sleeps, for far less than a timer of the loop can. */
void ws_rest(int64_t ns);

/* The origins of the sessions in the batch, in the order of their rows, with room for `member_count` of them; their number. The
 * indexes of the chunks whose origins Python has to make go to `rest`, the others are counted as committed. */
size_t ws_origins(ws_gatherer *g, int32_t *offsets, uint8_t *names, uint64_t *first, uint64_t *last, uint32_t *rows, int32_t *rest);

/* Begins the next batch. */
void ws_next_batch(ws_gatherer *g);

/* What these chunks hold is durable: acknowledge it. Pairs of descriptor and bytes that were sent of the ack's frame go to `rest`
 * for each connection whose ack Python has to write; -1 and the chunk's index for a session whose connection is gone. Their number. */
int ws_acknowledge(ws_gatherer *g, const ws_chunk *chunks, size_t count, int32_t *rest);

const uint8_t *ws_object(const uint8_t *at, const uint8_t *end);
int ws_is_object(const uint8_t *at, const uint8_t *end);

#endif
