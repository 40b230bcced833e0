/* Reads a fan-out: prints topic, rows and sequence of each message; with a third argument, writes the Arrow IPC stream of the
 * next message to that file.     cc fanout_reader.c -lzmq -o fanout_reader && ./fanout_reader tcp://127.0.0.1:5556 pump
 * plugins/transport_zmq/FANOUT.md has every byte. Integers are little-endian, as on the machines that this is for. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <zmq.h>

int main(int count, char **words) {
    void *context = zmq_ctx_new(), *socket = zmq_socket(context, ZMQ_SUB);
    const char *topic = count > 2 ? words[2] : "";
    if (count < 2 || zmq_connect(socket, words[1]) || zmq_setsockopt(socket, ZMQ_SUBSCRIBE, topic, strlen(topic)))
        return fprintf(stderr, "usage: fanout_reader ADDRESS [TOPIC [FILE]]\n"), 2;
    for (;;) {
        zmq_msg_t part[3];
        int parts = 0;
        do {
            zmq_msg_init(&part[parts]);
            if (zmq_msg_recv(&part[parts], socket, 0) < 0) return 1;
        } while (zmq_msg_more(&part[parts]) && ++parts < 3);
        const unsigned char *header = parts == 2 ? zmq_msg_data(&part[1]) : NULL;
        if (!header || zmq_msg_size(&part[1]) != 56 || memcmp(header, "HRPB\1", 5)) return 1;
        uint32_t rows;
        uint64_t sequence;
        memcpy(&rows, header + 8, 4), memcpy(&sequence, header + 32, 8);
        printf("%.*s rows=%u sequence=%llu bytes=%zu\n", (int)zmq_msg_size(&part[0]), (char *)zmq_msg_data(&part[0]), rows,
               (unsigned long long)sequence, zmq_msg_size(&part[2]));
        fflush(stdout);
        if (count > 3) {
            FILE *file = fopen(words[3], "wb");
            return !file || fwrite(zmq_msg_data(&part[2]), zmq_msg_size(&part[2]), 1, file) != 1 || fclose(file);
        }
        for (int i = 0; i < 3; i++) zmq_msg_close(&part[i]);
    }
}
