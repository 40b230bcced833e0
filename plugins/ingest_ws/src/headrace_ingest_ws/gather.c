/* From sockets to Arrow buffers, and acks back, for the connections that do what nearly all devices do: send JSON objects in
 * whole text frames and read their acks. Everything else is handed to Python, which looks after such a connection until all is
 * plain again. See polling.py.
 *
 * Nothing here blocks or keeps time. A connection is known by its descriptor; `serial` tells it from a later one there.
 */

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>

#include "wsframes.h"
#include "gather.h"

/* TAKEN_AT_ONCE: messages of a connection; so many at most are refused in one go, when the first of them has to be, and a refusal is
 * ten times the work. READ_MIN: what one connection may be read in a turn, however many others are ready */
enum { EVENTS_MAX = 256, UNPARSED = -1, HEADER_BYTES = 2, ACK_BYTES_MAX = 32, TAKEN_AT_ONCE = 64, READ_MIN = 8192 };

ws_gatherer *ws_gatherer_new(void) { return calloc(1, sizeof(ws_gatherer)); }

void ws_gatherer_delete(ws_gatherer *g) {
    free(g->payload_offsets);
    free(g->device_offsets);
    free(g->received);
    free(g->payload);
    free(g->device);
    free(g->chunks);
    free(g->table);
    free(g);
}

ws_connection *ws_connection_new(const uint8_t *name, size_t name_size, size_t device_size, ws_parser *parser, uint32_t window,
                                 uint64_t start) {
    ws_connection *c = calloc(1, sizeof *c + name_size);
    if (!c) return NULL;
    c->count = c->settled = c->acked = c->committed = start;
    c->chunk_batch = c->later = UINT64_MAX;
    c->window = window;
    c->special = 1; /* until Python has seen it plain */
    c->parser = parser;
    c->device_size = device_size;
    c->name_size = name_size;
    memcpy(c->name, name, name_size);
    return c;
}

void ws_connection_delete(ws_connection *c) { free(c); }

int ws_calm(ws_connection *c, double now) {
    const ws_parser *p = c->parser;
    if (c->special || c->paused || !c->gathers || c->count != c->acked || p->head_size || p->in_payload || p->kind) return 0;
    if (now >= c->look_at) return 0;
    c->calm_at = now;
    return 1;
}

size_t ws_restless(const ws_gatherer *g, size_t begin, size_t end, double now, int32_t *found) {
    size_t count = 0;
    for (size_t i = begin; i < end && i < g->table_size; i++)
        if (g->table[i] && !ws_calm(g->table[i], now)) found[count++] = (int32_t)i;
    return count;
}

int ws_place(ws_gatherer *g, int descriptor, ws_connection *c) {
    size_t at = (size_t)descriptor;
    if (descriptor < 0) return 0;
    if (at >= g->table_size) {
        if (!c) return 1;
        size_t size = at * 2 < 1024 ? 1024 : at * 2;
        ws_connection **table = realloc(g->table, size * sizeof *table);
        if (!table) return 0;
        memset(table + g->table_size, 0, (size - g->table_size) * sizeof *table);
        g->table = table;
        g->table_size = size;
    }
    g->table[at] = c;
    return 1;
}

static ws_connection *at(const ws_gatherer *g, int descriptor) {
    return g && (size_t)descriptor < g->table_size ? g->table[descriptor] : NULL;
}

/* Room for `size` in an array of `*room`; 0 when there is no memory. */
static int make_room(void **array, size_t *room, size_t size, size_t item) {
    if (size <= *room) return 1;
    size_t larger = *room ? *room : 4096;
    while (larger < size) larger *= 2;
    void *grown = realloc(*array, larger * item);
    if (!grown) return 0;
    *array = grown;
    *room = larger;
    return 1;
}

static int make_rows(ws_gatherer *g, size_t rows) {
    size_t room = g->row_room, same = g->row_room, again = g->row_room;
    if (rows < room) return 1; /* offsets have one more */
    if (!make_room((void **)&g->payload_offsets, &room, rows + 1, sizeof(int32_t))) return 0;
    if (!make_room((void **)&g->device_offsets, &same, rows + 1, sizeof(int32_t))) return 0;
    if (!make_room((void **)&g->received, &again, rows + 1, sizeof(int64_t))) return 0;
    g->row_room = room;
    return 1;
}

static double filled(double level, double per_s, double burst_s, double passed_s) {
    double full = per_s * burst_s, grown = level + per_s * passed_s;
    return grown < full ? grown : full;
}

static void refill(ws_rate *rate, double now) {
    double passed_s = now - rate->now;
    if (passed_s > 0) {
        rate->now = now;
        rate->events = filled(rate->events, rate->events_per_s, rate->burst_s, passed_s);
        rate->bytes = filled(rate->bytes, rate->bytes_per_s, rate->burst_s, passed_s);
    }
}

int ws_rate_take(ws_rate *rate, double events, double bytes, double now) {
    refill(rate, now);
    if (rate->events < events || rate->bytes < bytes) return 0;
    rate->events -= events;
    rate->bytes -= bytes;
    return 1;
}

static int may_send(ws_rate *rate, double now) {
    refill(rate, now);
    return rate->events > 0 && rate->bytes > 0;
}

/* Takes a run of messages into the batch; 0 when one of them is not certainly an object, its device has sent too much, or there is
 * no memory: none is taken. */
static int gather(ws_gatherer *g, ws_connection *c, int descriptor, const uint8_t *run, size_t size, size_t count, int64_t received_us,
                  double now) {
    const uint8_t *end = run + size, *message = run;
    if (!make_rows(g, g->rows + count) || !make_room((void **)&g->payload, &g->payload_room, g->payload_size + size, 1) ||
        !make_room((void **)&g->device, &g->device_room, g->device_size + count * c->device_size, 1) ||
        !make_room((void **)&g->chunks, &g->chunk_room, g->chunk_count + 1, sizeof(ws_chunk)))
        return 0;
    for (size_t i = 0; i < count; i++) {
        const uint8_t *stop = ws_object(message, end);
        if (!stop || (i + 1 < count ? stop == end || *stop != '\n' : stop != end)) return 0;
        g->payload_offsets[g->rows + i] = (int32_t)(g->payload_size + (size_t)(message - run) - i); /* newlines are left out */
        message = stop + 1;
    }
    if (c->rate && !ws_rate_take(c->rate, (double)count, (double)(size - (count - 1)), now)) return 0;
    g->payload_offsets[g->rows + count] = (int32_t)(g->payload_size + size - (count - 1));
    if (c->chunk_batch != g->number) {
        c->chunk_batch = g->number;
        c->chunk = g->chunk_count++;
        g->chunks[c->chunk] =
            (ws_chunk){.serial = c->serial, .descriptor = descriptor, .row = (uint32_t)g->rows, .member = c->origin_bytes != 0};
        g->origin_size += c->origin_bytes;
        if (c->origin_bytes) {
            g->member_count++;
            g->member_size += c->name_size;
        }
    }
    c->count += count;
    g->chunks[c->chunk].last = c->gathered = c->count;
    message = run;
    for (size_t i = 0; i < count; i++, g->rows++) {
        size_t length = (size_t)(g->payload_offsets[g->rows + 1] - g->payload_offsets[g->rows]);
        memcpy(g->payload + g->payload_size, message, length);
        memcpy(g->device + g->device_size, c->name, c->device_size);
        g->device_offsets[g->rows] = (int32_t)g->device_size;
        g->received[g->rows] = received_us;
        g->payload_size += length;
        g->device_size += c->device_size;
        message += length + 1;
    }
    g->device_offsets[g->rows] = (int32_t)g->device_size;
    return 1;
}

/* Parses and gathers what was read, TAKEN_AT_ONCE messages at a time; 0 when all of it was taken, else `read` tells what is left. */
static int take(ws_gatherer *g, ws_connection *c, int descriptor, uint8_t *bytes, size_t size, size_t rows_max, size_t bytes_max,
                int64_t received_us, double now, ws_find *read) {
    for (size_t begin = 0;;) {
        size_t most = c->window - (c->count - c->acked), left = rows_max - g->rows;
        if (most > left) most = left;
        if (most > TAKEN_AT_ONCE) most = TAKEN_AT_ONCE;
        ws_found found = {0};
        read->event = ws_parse(c->parser, bytes + begin, size - begin, most, &found);
        int taken = !found.run_count || gather(g, c, descriptor, bytes + begin, found.run_bytes, found.run_count, received_us, now);
        if (taken && read->event == WS_MORE) return 0;
        if (taken && read->event == WS_FULL && c->count - c->acked < c->window && g->rows < rows_max &&
            g->payload_size + g->origin_size < bytes_max) {
            begin += found.consumed;
            continue;
        }
        read->start += (int64_t)begin;
        read->size -= (int64_t)begin;
        read->run_bytes = (int64_t)found.run_bytes;
        read->run_count = taken ? 0 : (int64_t)found.run_count;
        read->consumed = (int64_t)found.consumed;
        read->code = found.code;
        read->data = (int64_t)(intptr_t)found.data;
        read->data_size = (int64_t)found.size;
        read->assembled = found.assembled;
        return 1;
    }
}

int ws_read(ws_gatherer *g, int epoll, int events_max, uint8_t *buffer, size_t size, size_t read_max, size_t rows_max, size_t bytes_max,
            int64_t received_us, double now, ws_find *finds) {
    struct epoll_event events[EVENTS_MAX];
    ws_find *find = finds;
    size_t start = 0;
    int count = epoll_wait(epoll, events, events_max < EVENTS_MAX ? events_max : EVENTS_MAX, 0);
    if (count < 0) return errno == EINTR ? 0 : -errno;
    if (g) g->more = count == events_max;
    /* who has much to send leaves the others their share of the turn */
    size_t share = count ? size / (size_t)count : size;
    if (share < READ_MIN) share = READ_MIN;
    if (read_max > share) read_max = share;
    for (int i = 0; i < count; i++) {
        int descriptor = events[i].data.fd;
        if (events[i].events & EPOLLOUT) *find++ = (ws_find){.descriptor = descriptor, .size = INT64_MIN, .event = UNPARSED};
        if (!(events[i].events & ~(uint32_t)EPOLLOUT)) continue;
        /* what is not read now is ready again in the next turn */
        if (size - start < read_max) break;
        if (g && (g->rows >= rows_max || g->payload_size + g->origin_size >= bytes_max)) break;
        ssize_t got = recv(descriptor, buffer + start, read_max, 0);
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) continue;
        ws_connection *c = at(g, descriptor);
        ws_find read = {.descriptor = descriptor, .start = (int64_t)start, .size = got < 0 ? -errno : got, .event = UNPARSED};
        if (got > 0 && c) c->heard_at = now;
        if (got > 0 && c && c->gathers && !c->paused && c->later != g->number && c->count - c->acked < c->window &&
            (!c->rate || may_send(c->rate, now)) &&
            !take(g, c, descriptor, buffer + start, (size_t)got, rows_max, bytes_max, received_us, now, &read))
            continue;
        if (c) {
            c->special = 1;
            c->look_at = 0;
        }
        *find++ = read;
        if (got > 0) start += ((size_t)got + 63) & ~(size_t)63;
    }
    return (int)(find - finds);
}

/* A core that sleeps for longer than some 0.2 ms in one go comes back cold: its host gives it to others, or its caches to sleep, and
 * what Python does for a commit takes three times as long. A longer rest is made of short ones. */
enum { SLEEP_NS_MAX = 100000, SLACK_NS = 1000 };

void ws_rest(int64_t ns) {
    static int precise;
    if (!precise) precise = prctl(PR_SET_TIMERSLACK, SLACK_NS, 0, 0, 0) == 0; /* else the kernel adds 50 us */
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t at = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec, until = at + ns;
    while (at < until) {
        at = until - at > SLEEP_NS_MAX ? at + SLEEP_NS_MAX : until;
        struct timespec wake = {.tv_sec = at / 1000000000, .tv_nsec = at % 1000000000};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &wake, NULL);
    }
}

size_t ws_origins(ws_gatherer *g, int32_t *offsets, uint8_t *names, uint64_t *first, uint64_t *last, uint32_t *rows, int32_t *rest) {
    size_t count = 0, size = 0;
    for (size_t i = 0; i < g->chunk_count; i++) {
        const ws_chunk *chunk = g->chunks + i;
        if (!chunk->member) continue;
        ws_connection *c = at(g, chunk->descriptor);
        /* where Python added to the batch too, one origin is of both */
        if (!c || c->serial != chunk->serial || c->noted || c->later == g->number) {
            *rest++ = (int32_t)i;
            continue;
        }
        offsets[count] = (int32_t)size;
        memcpy(names + size, c->name, c->name_size);
        size += c->name_size;
        first[count] = c->committed + 1;
        last[count] = c->committed = chunk->last;
        rows[count++] = chunk->row;
    }
    offsets[count] = (int32_t)size;
    return count;
}

void ws_next_batch(ws_gatherer *g) {
    g->number++;
    g->rows = g->payload_size = g->device_size = g->origin_size = g->chunk_count = g->member_count = g->member_size = 0;
}

/* The frame of an ack, whose size it returns. */
static size_t ack_frame(char frame[HEADER_BYTES + ACK_BYTES_MAX], uint64_t last) {
    static const char begin[] = "{\"ack\":";
    char digits[20];
    size_t count = 0, size = HEADER_BYTES + sizeof begin - 1;
    do digits[count++] = (char)('0' + last % 10);
    while (last /= 10);
    memcpy(frame + HEADER_BYTES, begin, sizeof begin - 1);
    while (count) frame[size++] = digits[--count];
    frame[size++] = '}';
    frame[0] = (char)0x81;
    frame[1] = (char)(size - HEADER_BYTES);
    return size;
}

int ws_acknowledge(ws_gatherer *g, const ws_chunk *chunks, size_t count, int32_t *rest) {
    int left = 0;
    for (const ws_chunk *chunk = chunks; chunk < chunks + count; chunk++) {
        ws_connection *c = at(g, chunk->descriptor);
        if (!c || c->serial != chunk->serial) { /* it is gone */
            if (chunk->member) {
                *rest++ = -1;
                *rest++ = (int32_t)(chunk - chunks);
                left++;
            }
            continue;
        }
        if (chunk->last > c->settled) c->settled = chunk->last;
        if (c->settled <= c->acked) continue;
        int sent = 0;
        if (!c->special) {
            char frame[HEADER_BYTES + ACK_BYTES_MAX];
            size_t size = ack_frame(frame, c->settled);
            sent = (int)send(chunk->descriptor, frame, size, MSG_DONTWAIT | MSG_NOSIGNAL);
            if (sent == (int)size) {
                c->acked = c->settled;
                continue;
            }
        }
        *rest++ = chunk->descriptor;
        *rest++ = sent < 0 ? 0 : sent;
        left++;
    }
    return left;
}
