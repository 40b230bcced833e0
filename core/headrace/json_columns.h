/* What Python sees of json_columns.c; cffi reads this file too, so it holds plain declarations only (it skips lines that begin with #). */
#ifndef HEADRACE_JSON_COLUMNS_H
#define HEADRACE_JSON_COLUMNS_H

/* What a member of an object is expected to be. */
enum { JSON_CLAIM, JSON_NUMBER, JSON_INTEGER, JSON_BOOLEAN, JSON_STRING, JSON_OBJECT };

/* How an event claims its time: not at all, as a whole number, as another one, as a text. */
enum { CLAIM_NONE, CLAIM_INTEGER, CLAIM_NUMBER, CLAIM_TEXT };

/* A member that an event, or an object in it, may have. */
typedef struct {
    const uint8_t *name; /* as it stands between the quotes: it has nothing to escape */
    uint32_t length;
    int32_t object;      /* whose member it is: 0, the event's */
    int32_t kind;
    int32_t place;       /* the column of its values; of an object, its number */
    int32_t next;        /* the member that came behind it last time, -1: none */
    uint64_t seen;       /* the last event that had it */
} json_member;

/* One reading's values of a batch, a row for each event. Whoever takes a block (from malloc) sets it to NULL here. */
typedef struct {
    int32_t kind;
    int64_t count;       /* how many there are; without any there are no blocks */
    uint8_t *values;     /* float64, int64, bits; of texts where they begin, int32 */
    uint8_t *valid;      /* a bit for each row; it lies in the block of the values */
    uint8_t *texts;
    int64_t texts_size;
} json_column;

/* What to expect of an event. Python fills in all but what is `inner`. */
typedef struct {
    json_member *members;
    int32_t *first;      /* of each object, the member that came first last time, -1: none */
    int32_t *slots;      /* members by the hash of object and name, -1: none; a power of two, at least twice as many as members */
    json_column *columns;
    int32_t members_count, columns_count;
    uint32_t slots_count;
    int32_t *touched;    /* inner: room for the members that the event at hand has */
    int32_t touched_count;
    uint64_t event;      /* inner: the number of the event at hand */
} json_plan;

/* The times that events claim, by row. */
typedef struct {
    uint8_t *kinds;      /* CLAIM_*; given as zeros */
    int64_t *integers;   /* also a text's place: start << 32 | length */
    double *numbers;
} json_claims;

/* Read so many payloads, which lie one behind the other. Events that are not certainly as expected are odd: they are marked, and have
 * no values. How many there are; behind more than `odd_max` of them no more are read. -1: no memory. */
int64_t json_read(json_plan *plan, const uint8_t *data, int64_t size, const int32_t *offsets, int64_t rows, json_claims *claims,
                  uint8_t *odd, int64_t odd_max);

/* Free the blocks that nobody took. */
void json_release(json_plan *plan);

/* Put the members into their slots. */
void json_place(json_plan *plan);

/* Free one block. */
void json_free(void *block);

#endif
