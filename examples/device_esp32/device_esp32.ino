// A device on an ESP32 (Arduino core): measures, sends, and goes on after every break without losing or doubling a reading.
// The session's id is random at each start, so nobody takes it from us (close code 4409, which this library keeps to itself).
// Library: WebSockets by Markus Sattler. What is sent when is decided in headrace_session.h, which knows no Arduino.

#include <WebSocketsClient.h>
#include <WiFi.h>

#include "headrace_session.h"

static const char *WIFI_NAME = "workshop", *WIFI_PASSWORD = "change me";
static const char *HOST = "gateway.example", *DEVICE = "pump-7";
static const uint16_t PORT = 8080;
static const uint32_t MEASURE_MS = 1000, WAIT_FIRST_MS = 100, WAIT_LAST_MS = 10000;

static hr_session session;
static WebSocketsClient socket_;
static bool connected;
static uint32_t measured_at, connect_at, pause_from, ceiling_ms = WAIT_FIRST_MS;
static uint64_t acked_before;

static void on_event(WStype_t type, uint8_t *data, size_t size) {
    if (type == WStype_CONNECTED) {
        connected = true;
        hr_connected(&session);
    } else if (type == WStype_TEXT) {
        hr_text(&session, (const char *)data, size);
        if (session.pause_ms) pause_from = millis();
    } else if (type == WStype_DISCONNECTED) {
        connected = false;
        ceiling_ms = session.acked > acked_before ? WAIT_FIRST_MS : min(WAIT_LAST_MS, 2 * ceiling_ms);
        connect_at = millis() + random(ceiling_ms);  // any time below a growing bound: a fleet must not come back at once
    }
}

static void try_to_connect() {
    char path[160];
    hr_path(&session, DEVICE, path, sizeof path);
    acked_before = session.acked;
    connect_at = millis() + WAIT_LAST_MS;
    socket_.begin(HOST, PORT, path, "headrace.v1.json");
    socket_.setReconnectInterval(3600000);  // we do that, each time with what is acked by then
}

void setup() {
    char id[17];
    snprintf(id, sizeof id, "%08lx%08lx", (unsigned long)esp_random(), (unsigned long)esp_random());
    hr_begin(&session, id);
    WiFi.begin(WIFI_NAME, WIFI_PASSWORD);
    socket_.onEvent(on_event);
    socket_.enableHeartbeat(30000, 10000, 2);
}

void loop() {
    uint32_t now = millis();
    if (now - measured_at >= MEASURE_MS) {
        char reading[HR_BYTES];
        measured_at = now;
        snprintf(reading, sizeof reading, "{\"uptime_s\":%lu,\"temperature\":%.2f}", (unsigned long)(now / 1000), (double)temperatureRead());
        hr_add(&session, reading);  // when the memory is full, this reading is not taken
    }
    if (WiFi.status() == WL_CONNECTED && !connected && (int32_t)(now - connect_at) >= 0) try_to_connect();
    if (now - pause_from >= session.pause_ms) session.pause_ms = 0;
    const char *message;
    while (connected && (message = hr_next(&session)) != NULL) socket_.sendTXT(message);
    socket_.loop();
}
