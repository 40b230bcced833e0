/* Reads all connections that are ready with one call from Python; see polling.py. */

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define EVENTS_MAX 256

static int32_t *found(int32_t *at, int descriptor, size_t start, int32_t size) {
    at[0] = descriptor;
    at[1] = (int32_t)start;
    at[2] = size;
    return at + 3;
}

int ws_read(int epoll, int events_max, uint8_t *buffer, size_t size, size_t read_max, int32_t *finds) {
    struct epoll_event events[EVENTS_MAX];
    int32_t *at = finds;
    size_t start = 0;
    int count = epoll_wait(epoll, events, events_max < EVENTS_MAX ? events_max : EVENTS_MAX, 0);
    if (count < 0)
        return errno == EINTR ? 0 : -errno;
    for (int i = 0; i < count; i++) {
        int descriptor = events[i].data.fd;
        if (events[i].events & EPOLLOUT)
            at = found(at, descriptor, 0, INT32_MIN);
        if (!(events[i].events & ~(uint32_t)EPOLLOUT))
            continue;
        if (size - start < read_max)
            break; /* what was not read is ready again in the next turn */
        ssize_t got = recv(descriptor, buffer + start, read_max, 0);
        if (got < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        at = found(at, descriptor, start, got < 0 ? -errno : (int32_t)got);
        if (got > 0)
            start += ((size_t)got + 63) & ~(size_t)63;
    }
    return (int)((at - finds) / 3);
}
