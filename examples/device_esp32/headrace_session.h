/* A device session of headrace for small devices: which message goes out next, what the server's texts mean, what has to be kept.
 *
 * Plain C without I/O, allocation or libraries; docs/protocol.md ("Sessions") is what it follows. The caller moves the texts:
 *
 *     hr_begin(&s, "1f0c9a7e");                       once, with a random id: RAM forgets the numbers with every reset
 *     hr_add(&s, "{\"temperature\":21.5}");           any time; 0 when nothing more can be kept
 *     hr_path(&s, "pump-7", path, sizeof path);       for each connection: GET this, with subprotocol headrace.v1.json
 *     hr_connected(&s);                               it stands
 *     hr_text(&s, text, length);                      for each text that comes
 *     while ((message = hr_next(&s))) send(message);  after each of these
 */
#ifndef HEADRACE_SESSION_H
#define HEADRACE_SESSION_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#ifndef HR_HELD /* messages that are kept until they are acked */
#define HR_HELD 64
#endif
#ifndef HR_BYTES /* of one message, with its final zero */
#define HR_BYTES 192
#endif

typedef enum { HR_TAKEN, HR_REFUSED, HR_LATER } hr_verdict;

typedef struct {
    char id[65];
    uint64_t acked;    /* every message of the session up to here is durable, or was refused */
    unsigned first;    /* slot of message acked + 1 */
    unsigned count;    /* messages that are held */
    unsigned sent;     /* so many of them are on the wire */
    unsigned window;   /* so many may be; 0 while the hello is awaited */
    unsigned refused;  /* messages given up in all: the server will never take them */
    unsigned unsure;   /* hellos that said null: what was sent again may be stored twice */
    uint32_t pause_ms; /* the server wants to be left alone for so long; the caller waits, and sets it to 0 */
    unsigned char verdict[HR_HELD];
    char text[HR_HELD][HR_BYTES];
} hr_session;

static inline void hr_begin(hr_session *s, const char *id) {
    memset(s, 0, sizeof *s);
    snprintf(s->id, sizeof s->id, "%s", id);
}

/* Keep a message until it is acked; 0 when it is too long or nothing more can be kept. */
static inline int hr_add(hr_session *s, const char *json) {
    if (s->count == HR_HELD || strlen(json) >= HR_BYTES) return 0;
    unsigned slot = (s->first + s->count++) % HR_HELD;
    memcpy(s->text[slot], json, strlen(json) + 1);
    s->verdict[slot] = HR_TAKEN;
    return 1;
}

static inline void hr_path(const hr_session *s, const char *device, char *path, size_t size) {
    snprintf(path, size, "/v1/devices/%s/events?session=%s&acked=%llu", device, s->id, (unsigned long long)s->acked);
}

/* A new connection stands: nothing is sent before its hello. */
static inline void hr_connected(hr_session *s) { s->sent = s->window = 0; }

/* The next message to send now, or NULL. */
static inline const char *hr_next(hr_session *s) {
    unsigned room = s->count < s->window ? s->count : s->window;
    return s->sent < room && !s->pause_ms ? s->text[(s->first + s->sent++) % HR_HELD] : NULL;
}

/* Behind `"key":`, or NULL. A quote inside a JSON string is escaped, so no reason can look like a member. */
static inline const char *hr_member(const char *text, const char *end, const char *key) {
    size_t size = strlen(key);
    for (; text + size + 3 <= end; text++)
        if (text[0] == '"' && !memcmp(text + 1, key, size) && text[size + 1] == '"' && text[size + 2] == ':') return text + size + 3;
    return NULL;
}

static inline uint64_t hr_number(const char *text, const char *end) {
    uint64_t number = 0;
    while (text < end && *text == ' ') text++;
    while (text < end && *text >= '0' && *text <= '9') number = number * 10 + (uint64_t)(*text++ - '0');
    return number;
}

/* Write down a reject (an object that ends at `end`). It counts once the ack that covers it is there. */
static inline void hr_reject(hr_session *s, const char *text, const char *end) {
    const char *member = hr_member(text, end, "reject"), *retry = hr_member(text, end, "retry_ms");
    uint64_t number = member ? hr_number(member, end) : 0;
    if (number <= s->acked || number > s->acked + s->count) return;
    s->verdict[(s->first + (unsigned)(number - s->acked - 1)) % HR_HELD] = retry ? HR_LATER : HR_REFUSED;
    if (retry) s->pause_ms = (uint32_t)hr_number(retry, end);
}

/* Forget the messages up to this number. */
static inline void hr_ack(hr_session *s, uint64_t upto) {
    if (!s->count && upto > s->acked) s->acked = upto;
    while (s->acked < upto && s->count) {
        unsigned slot = s->first;
        char again[HR_BYTES];
        hr_verdict verdict = (hr_verdict)s->verdict[slot];
        memcpy(again, s->text[slot], HR_BYTES);
        s->first = (s->first + 1) % HR_HELD, s->count--, s->acked++;
        if (s->sent) s->sent--;
        if (verdict == HR_REFUSED) s->refused++;
        if (verdict == HR_LATER) hr_add(s, again); /* a new message, with a new number */
    }
}

static inline void hr_hello(hr_session *s, const char *text, const char *end) {
    const char *resume = hr_member(text, end, "resume"), *refused = hr_member(text, end, "refused"), *window = hr_member(text, end, "window");
    memset(s->verdict, HR_TAKEN, sizeof s->verdict);
    while (refused && (refused = hr_member(refused, end, "reject"))) { /* each is an object without objects in it */
        const char *close = (const char *)memchr(refused, '}', (size_t)(end - refused));
        hr_reject(s, refused - sizeof "\"reject\":" + 1, close ? close : end);
    }
    if (resume && *resume != 'n') hr_ack(s, hr_number(resume, end));
    else s->unsure++; /* null: the server cannot tell, and all that is held goes again */
    s->sent = 0;
    s->window = window ? (unsigned)hr_number(window, end) : 1;
}

/* A text from the server; members and texts that are not known are left to later versions. */
static inline void hr_text(hr_session *s, const char *text, size_t size) {
    const char *end = text + size, *ack = hr_member(text, end, "ack");
    if (hr_member(text, end, "hello")) hr_hello(s, text, end);
    else if (hr_member(text, end, "reject")) hr_reject(s, text, end);
    else if (ack) hr_ack(s, hr_number(ack, end));
}

#endif
