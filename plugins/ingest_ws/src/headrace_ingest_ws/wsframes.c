/* Frames of a WebSocket client (RFC 6455), parsed and unmasked in the buffer that they were read into.
 *
 * One call takes the bytes of one read. Short JSON texts, nearly all that a device sends, are moved together at the start of
 * the buffer, joined by newlines (the run); at anything else the call returns with an event, and Python calls again with what
 * is left. A parser holds at most one unfinished message, which grows with the bytes that came, never with those announced.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "wsframes.h"

/* What a call may end with; parser.py has the same numbers. */
enum { WS_MORE, WS_FULL, WS_TEXT, WS_BINARY, WS_PING, WS_PONG, WS_CLOSE, WS_ERROR };
enum { CONTINUATION = 0, TEXT = 1, BINARY = 2, CLOSE = 8, PING = 9, PONG = 10 };
enum { BROKEN = 1002, NOT_TEXT = 1007, TOO_BIG = 1009, NO_MEMORY = 1011, CROWDED = 1013 };
enum { FIN = 0x80, RESERVED = 0x70, MASKED = 0x80, CONTROL = 8, BRACES_MAX = 16 };

ws_parser *ws_new(uint64_t message_max, ws_memory *memory) {
    ws_parser *p = calloc(1, sizeof *p);
    if (p) {
        p->message_max = message_max;
        p->memory = memory;
    }
    return p;
}

void ws_release(ws_parser *p) {
    free(p->message);
    p->memory->held -= p->room;
    p->message = NULL;
    p->size = p->room = 0;
}

void ws_delete(ws_parser *p) {
    ws_release(p);
    free(p);
}

/* Unmask `size` bytes; returns whether one of them is not ASCII. `to` may lie at or before `from` in the same buffer: each
 * step loads its bytes before it stores them, and never stores beyond what it has loaded. */
static int unmask(uint8_t *to, const uint8_t *from, size_t size, uint8_t mask[4]) {
    uint64_t key, word, high = 0;
    uint8_t turned[4];
    size_t i = 0;
    memcpy(&key, mask, 4);
    memcpy((uint8_t *)&key + 4, mask, 4);
    for (; i + 8 <= size; i += 8) {
        memcpy(&word, from + i, 8);
        word ^= key;
        high |= word;
        memcpy(to + i, &word, 8);
    }
    for (; i < size; i++) {
        to[i] = from[i] ^ mask[i & 3];
        high |= to[i];
    }
    for (i = 0; i < 4; i++) turned[i] = mask[(size + i) & 3];
    memcpy(mask, turned, 4);
    return (high & 0x8080808080808080u) != 0;
}

/* Go on with UTF-8 (RFC 3629) where the bytes before ended; 0 at the first byte that can never become valid. */
static int utf8(ws_parser *p, const uint8_t *at, size_t size) {
    for (const uint8_t *end = at + size; at < end; at++) {
        uint8_t c = *at;
        if (p->utf8_need) {
            if (c < p->utf8_low || c > p->utf8_high) return 0;
            p->utf8_need--;
            p->utf8_low = 0x80, p->utf8_high = 0xBF;
            continue;
        }
        if (c < 0x80) continue;
        if (c < 0xC2 || c > 0xF4) return 0;
        p->utf8_need = c < 0xE0 ? 1 : c < 0xF0 ? 2 : 3;
        /* no overlong forms, no surrogates, nothing above U+10FFFF */
        p->utf8_low = c == 0xE0 ? 0xA0 : c == 0xF0 ? 0x90 : 0x80;
        p->utf8_high = c == 0xED ? 0x9F : c == 0xF4 ? 0x8F : 0xBF;
    }
    return 1;
}

/* May this text join the run? Then it is certainly no array, no message of several lines, and not nested too deeply; whether
 * it is JSON is left to a real JSON parser. */
static int is_plain(const uint8_t *text, size_t size) {
    size_t braces = 0, lines = 0;
    if (!size || text[0] != '{') return 0;
    for (size_t i = 0; i < size; i++) { /* without branches, so that the compiler makes vector code of it */
        braces += (text[i] | 0x20) == '{'; /* '[' | 0x20 is '{' */
        lines += text[i] == '\n';
    }
    return !lines && braces <= BRACES_MAX;
}

static uint64_t big_endian(const uint8_t *bytes, size_t size) {
    uint64_t number = 0;
    while (size--) number = number << 8 | *bytes++;
    return number;
}

/* Take header bytes from *at: 1 when the header is complete and allowed, 0 when it needs more, else the close code. */
static int header(ws_parser *p, const uint8_t **at, const uint8_t *end) {
    const uint8_t *h = p->head;
    size_t length_size = 0;
    for (;;) {
        uint8_t opcode, need = 2;
        if (p->head_size >= 2) {
            opcode = h[0] & 15;
            if (h[0] & RESERVED || !(h[1] & MASKED)) return BROKEN;
            if (opcode & CONTROL ? opcode > PONG || !(h[0] & FIN) || (h[1] & 127) > 125 : opcode > BINARY) return BROKEN;
            if (!(opcode & CONTROL) && (opcode == CONTINUATION) != (p->kind != 0)) return BROKEN;
            length_size = (h[1] & 127) == 126 ? 2 : (h[1] & 127) == 127 ? 8 : 0;
            need = (uint8_t)(2 + length_size + 4);
            if (length_size && p->head_size >= 2 + length_size) {
                uint64_t length = big_endian(h + 2, length_size);
                /* the shortest form is a must; a frame of 2^63 bytes is none at all */
                if (length >> 63 || length < (length_size == 2 ? 126u : 65536u)) return BROKEN;
            }
            if (p->head_size == need) break;
            if (length_size && p->head_size < 2 + length_size) need -= 4; /* judge the length before the mask is there */
        }
        while (p->head_size < need) {
            if (*at == end) return 0;
            p->head[p->head_size++] = *(*at)++;
        }
    }
    p->left = length_size ? big_endian(h + 2, length_size) : h[1] & 127;
    memcpy(p->mask, h + 2 + length_size, 4);
    p->first = h[0];
    p->head_size = 0;
    p->in_payload = 1;
    if (p->first & CONTROL) {
        p->control_size = 0;
        return 1;
    }
    if (p->left > p->message_max - p->size) return TOO_BIG; /* size <= message_max, always */
    if ((p->first & 15) != CONTINUATION) p->kind = p->first & 15;
    return 1;
}

/* Room for so many more bytes, which have arrived already; 0, or a close code. A message that ends with them is let go at once,
 * so it is not the one to be given up for want of memory. */
static int grow(ws_parser *p, size_t more, int ends) {
    size_t room = p->room ? p->room : 256;
    while (room < p->size + more) room *= 2;
    if (room > p->room) {
        if (!ends && room - p->room + p->memory->held > p->memory->held_max) return CROWDED;
        uint8_t *message = realloc(p->message, room);
        if (!message) return NO_MEMORY;
        p->memory->held += room - p->room;
        p->message = message;
        p->room = room;
    }
    return 0;
}

static int fail(ws_found *found, int code) {
    found->code = code;
    return WS_ERROR;
}

/* Take all that is there of the current frame's payload; WS_MORE, or the event it ends with. *out is the end of the run. */
static int payload(ws_parser *p, const uint8_t **at, const uint8_t *end, uint8_t **out, ws_found *found) {
    size_t take = p->left < (uint64_t)(end - *at) ? (size_t)p->left : (size_t)(end - *at);
    int fin = p->first & FIN, kind = p->kind;
    const uint8_t *from = *at;
    *at += take;
    p->left -= take;
    p->in_payload = p->left != 0;
    if (p->first & CONTROL) {
        unmask(p->control + p->control_size, from, take, p->mask); /* the header allowed 125 bytes at most */
        p->control_size += (uint8_t)take;
        if (p->left) return WS_MORE;
        found->data = p->control;
        found->size = p->control_size;
        return (p->first & 15) == CLOSE ? WS_CLOSE : (p->first & 15) == PING ? WS_PING : WS_PONG;
    }
    if (!p->left && fin && !p->size && !p->utf8_need) { /* a whole message, and nothing of it is stored: it stays in the buffer */
        uint8_t *to = *out;
        if (found->run_count) *to++ = '\n'; /* in bounds: this frame's header stood behind the run */
        p->kind = 0;
        if (unmask(to, from, take, p->mask) && kind == TEXT && (!utf8(p, to, take) || p->utf8_need)) return fail(found, NOT_TEXT);
        if (kind == TEXT && is_plain(to, take)) {
            *out = to + take;
            found->run_count++;
            return WS_MORE;
        }
        found->data = to;
        found->size = take;
        return kind == TEXT ? WS_TEXT : WS_BINARY;
    }
    if (take) {
        int code = grow(p, take, !p->left && fin);
        if (code) return fail(found, code);
        if ((unmask(p->message + p->size, from, take, p->mask) || p->utf8_need) && kind == TEXT &&
            !utf8(p, p->message + p->size, take))
            return fail(found, NOT_TEXT);
        p->size += take;
    }
    if (p->left || !fin) return WS_MORE;
    if (p->utf8_need) return fail(found, NOT_TEXT);
    p->kind = 0;
    found->data = p->message;
    found->size = p->size;
    found->assembled = 1;
    return kind == TEXT ? WS_TEXT : WS_BINARY;
}

/* Take frames until the bytes end (WS_MORE), `messages_max` texts are in the run (WS_FULL), or something else comes: a
 * message that is not in the run, a control frame, an error. The run lies before the event. Not to be called after WS_ERROR. */
int ws_parse(ws_parser *p, uint8_t *bytes, size_t size, size_t messages_max, ws_found *found) {
    const uint8_t *at = bytes, *end = bytes + size;
    uint8_t *out = bytes;
    int event = WS_MORE;
    memset(found, 0, sizeof *found);
    while (event == WS_MORE && at < end) {
        if (found->run_count == messages_max) {
            event = WS_FULL;
            break;
        }
        if (!p->in_payload) {
            int verdict = header(p, &at, end);
            if (verdict == 0) break;
            if (verdict != 1) {
                event = fail(found, verdict);
                break;
            }
        }
        if (p->left && at == end) break;
        event = payload(p, &at, end, &out, found);
    }
    if (event == WS_ERROR) ws_release(p); /* now, for the parsers that the same read comes to next */
    found->consumed = (size_t)(at - bytes);
    found->run_bytes = (size_t)(out - bytes);
    return event;
}
