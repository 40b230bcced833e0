/* The ceiling: one thread, epoll, WebSocket frames copied into a ring in memory, one cumulative ack a read. It checks nothing and
 * stores nothing durably; no server that does can be faster on this machine. Usage: ceiling PORT (loopback; prints READY). */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>
#include "../load/sha1.h"

enum { CONNECTIONS_MAX = 1 << 20, READ_BYTES = 1 << 18, RING_BYTES = 64 << 20 };

struct connection {
    int upgraded;
    uint64_t count;
    size_t kept_size;
    uint8_t *kept; /* the beginning of a frame or of the request */
};

static struct connection *connections[CONNECTIONS_MAX];
static uint8_t buffer[READ_BYTES + 1], ring[RING_BYTES];
static size_t ring_at;

static size_t upgrade(int fd, struct connection *c, size_t size) {
    char text[256], reply[256];
    uint8_t digest[20];
    buffer[size] = 0;
    char *end = strstr((char *)buffer, "\r\n\r\n"), *key = strcasestr((char *)buffer, "Sec-WebSocket-Key: ");
    if (!end || !key) return 0;
    key += 19;
    snprintf(text, sizeof text, "%.*s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", (int)strcspn(key, "\r"), key);
    sha1((uint8_t *)text, strlen(text), digest);
    b64(digest, 20, text);
    int length = snprintf(reply, sizeof reply,
                          "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n", text);
    if (send(fd, reply, (size_t)length, MSG_NOSIGNAL) < 0) perror("send");
    c->upgraded = 1;
    return (size_t)(end + 4 - (char *)buffer);
}

/* Whole frames from `at` on go into the ring; returns what is used up. */
static size_t frames(struct connection *c, size_t at, size_t size) {
    while (size - at >= 6) {
        uint8_t *p = buffer + at;
        size_t length = p[1] & 127, head = 2;
        if (length == 126) {
            if (size - at < 8) break;
            length = (size_t)p[2] << 8 | p[3];
            head = 4;
        } else if (length == 127) exit(3); /* wsload sends no such frames */
        if (size - at < head + 4 + length) break;
        uint8_t *mask = p + head, *payload = mask + 4;
        if (ring_at + length > RING_BYTES) ring_at = 0;
        for (size_t i = 0; i < length; i++) ring[ring_at + i] = payload[i] ^ mask[i & 3];
        ring_at += length;
        if ((p[0] & 15) == 1) c->count++;
        at += head + 4 + length;
    }
    return at;
}

static void drop(int fd) {
    close(fd);
    free(connections[fd]->kept);
    free(connections[fd]);
    connections[fd] = NULL;
}

static void readable(int fd) {
    struct connection *c = connections[fd];
    memcpy(buffer, c->kept, c->kept_size);
    ssize_t got = recv(fd, buffer + c->kept_size, READ_BYTES - c->kept_size, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        drop(fd);
        return;
    }
    size_t size = c->kept_size + (size_t)got, used = c->upgraded ? 0 : upgrade(fd, c, size);
    uint64_t before = c->count;
    if (c->upgraded) used = frames(c, used, size);
    c->kept_size = size - used;
    if (c->kept_size) {
        c->kept = realloc(c->kept, c->kept_size);
        memcpy(c->kept, buffer + used, c->kept_size);
    }
    if (c->count > before) {
        char frame[40];
        int length = snprintf(frame + 2, 38, "{\"ack\":%llu}", (unsigned long long)c->count);
        frame[0] = (char)0x81;
        frame[1] = (char)length;
        if (send(fd, frame, (size_t)length + 2, MSG_NOSIGNAL) < 0) drop(fd);
    }
}

int main(int argc, char **argv) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    int one = 1, listening = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), epoll = epoll_create1(0);
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argc > 1 ? argv[1] : "18080"))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listening, (struct sockaddr *)&address, sizeof address) || listen(listening, 4096)) {
        perror("cannot listen");
        return 1;
    }
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listening}, events[512];
    epoll_ctl(epoll, EPOLL_CTL_ADD, listening, &event);
    puts("READY");
    fflush(stdout);
    for (;;) {
        int count = epoll_wait(epoll, events, 512, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd != listening) {
                if (connections[fd]) readable(fd);
                continue;
            }
            for (int accepted = 0; accepted < 64; accepted++) {
                int new = accept4(listening, NULL, NULL, SOCK_NONBLOCK);
                if (new < 0 || new >= CONNECTIONS_MAX) break;
                setsockopt(new, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                connections[new] = calloc(1, sizeof(struct connection));
                struct epoll_event in = {.events = EPOLLIN, .data.fd = new};
                epoll_ctl(epoll, EPOLL_CTL_ADD, new, &in);
            }
        }
    }
}
