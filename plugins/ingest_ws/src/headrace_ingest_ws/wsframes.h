/* What Python sees of wsframes.c; cffi reads this file too, so it holds plain declarations only (it skips lines that begin with #). */
#ifndef HEADRACE_WSFRAMES_H
#define HEADRACE_WSFRAMES_H

typedef struct {
    size_t held, held_max; /* bytes allocated for unfinished messages of all parsers that share this, and how many may be before one more grows */
} ws_memory;

typedef struct {
    ws_memory *memory;
    uint64_t message_max;  /* longest message in bytes */
    uint64_t left;         /* payload bytes of the current frame that are still to come */
    uint8_t *message;      /* the unfinished message so far, unmasked: `size` bytes in `room` allocated ones */
    size_t size, room;
    uint8_t head[14];      /* the current frame's header as far as it is there */
    uint8_t head_size;
    uint8_t in_payload;    /* the header is complete */
    uint8_t mask[4];       /* turned so that mask[0] is for the next payload byte */
    uint8_t first;         /* the current frame's first byte: FIN and opcode */
    uint8_t kind;          /* opcode of the message under way, 0: none */
    uint8_t utf8_need, utf8_low, utf8_high; /* continuation bytes due, and the bounds of the next one */
    uint8_t control_size;
    uint8_t control[125];  /* payload of a control frame */
} ws_parser;

typedef struct {
    size_t consumed;     /* bytes that need not be given again */
    size_t run_bytes;    /* the run: at the start of the given bytes, its texts joined by newlines */
    size_t run_count;
    const uint8_t *data; /* payload of the event; valid until the next call with this parser or buffer */
    size_t size;
    int code;            /* WS_ERROR: the close code */
    int assembled;       /* data is the parser's own memory: call ws_release once it is copied */
} ws_found;

ws_parser *ws_new(uint64_t message_max, ws_memory *memory); /* memory: outlives the parser */
void ws_delete(ws_parser *p);
void ws_release(ws_parser *p);
int ws_parse(ws_parser *p, uint8_t *bytes, size_t size, size_t messages_max, ws_found *found);

#endif
