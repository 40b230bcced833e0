#!/bin/bash
# start.sh [CONFIG]: starts akumulid so that a crash before leaves neither holes nor doubles.
#
# A server that was killed repairs its series when it starts, but it has forgotten which points are late, and it loses what it
# repaired when it is killed again. A clean stop mends both. So every start has two phases:
#   1. with the HTTP port only: nobody can write. Wait until it answers (the repair is done by then), then stop it: that commits.
#   2. the real config. When it answers, write one point to `headrace.start`: it tells sink_akumuli that everything the server
#      has now is safe.
# SIGTERM is passed on; it takes 1.5 s for 100,000 series. Give the container 60 s before it is killed.
#
# Before them it mends what a kill can leave in the server's table of series, by sqlite3.
#
# CONFIG (default: $AKUMULI_CONFIG, or akumuli.conf beside this script) is an akumulid config with [HTTP] and [TCP], and without
# [UDP] and [WAL], which lose data. A database that is not there yet is made.
set -euo pipefail

config=${1:-${AKUMULI_CONFIG:-$(dirname "$0")/akumuli.conf}}
wait_s=${AKUMULI_START_WAIT_S:-600}
[ -r "$config" ] || { echo "start.sh: expected a config, cannot read $config" >&2; exit 78; }
if grep -Eq '^[[:space:]]*\[(UDP|WAL)\]' "$config"; then
    echo "start.sh: $config has a section [UDP] or [WAL]: both lose points, take it out" >&2
    exit 78
fi

# KEY SECTION (empty: before the first section): the value of a key
value() { awk -F= -v section="$2" -v key="$1" '
    { gsub(/^[ \t]+|[ \t\r]+$/, "") }
    /^[#;]/ { next }
    /^\[/ { here = substr($0, 2, length($0) - 2); next }
    here == section && $1 == key { print substr($0, length(key) + 2); exit }' "$config"; }

host_of() { local host; host=$(value bind_addr "$1"); [ -z "$host" ] || [ "$host" = 0.0.0.0 ] && host=127.0.0.1; echo "$host"; }
path=$(value path ""); path=${path/#\~/$HOME}
http_port=$(value port HTTP); tcp_port=$(value port TCP)
if [ -z "$path" ] || [ -z "$http_port" ] || [ -z "$tcp_port" ]; then
    echo "start.sh: expected path, [HTTP] port and [TCP] port in $config" >&2
    exit 78
fi
http_host=$(host_of HTTP); tcp_host=$(host_of TCP)

pid=
stopping=
trap 'stopping=1' TERM INT

answers() { # whether the HTTP port says its version
    { exec 3<>"/dev/tcp/$http_host/$http_port"; } 2>/dev/null || return 1
    printf 'GET /api/version HTTP/1.0\r\n\r\n' >&3
    local line; IFS= read -r -t 5 line <&3 || true
    exec 3<&- 3>&-
    [[ $line == *" 200 "* ]]
}

alive() { kill -0 "$pid" 2>/dev/null; }

wait_until_it_answers() {
    local until=$((SECONDS + wait_s))
    until answers; do
        alive || { wait "$pid" || exit $?; exit 1; }
        [ -z "$stopping" ] || { stop_it; exit $?; }
        [ "$SECONDS" -lt "$until" ] || { echo "start.sh: no answer for $wait_s s" >&2; kill -KILL "$pid"; exit 1; }
        sleep 0.1
    done
}

# Stop it cleanly; its exit code. It loses a SIGTERM that comes just before it waits for one: it goes on answering then, and is sent
# another. (Not otherwise: its handler writes to the log, which is no place to be interrupted in.)
stop_it() {
    local code=0 tries=0
    kill -TERM "$pid" 2>/dev/null || true
    while alive; do
        sleep 0.1
        tries=$((tries + 1))
        if [ $((tries % 10)) = 0 ] && answers; then kill -TERM "$pid" 2>/dev/null || true; fi
    done
    wait "$pid" || code=$?
    return "$code"
}

# A series' name and the row that says where its points are go to the server's files in two steps. Killed in between, it answers
# "-not found" for ever to whatever concerns the metric, and takes no points of that series. The row that it makes for a series without points
# is an empty one.
mend() {
    command -v sqlite3 > /dev/null || { echo "start.sh: no sqlite3: a series that a kill left in name only stays unreadable" >&2; return; }
    local lacking="storage_id not in (select storage_id from akumuli_rescue_points)" mended
    mended=$(sqlite3 "$path/db.akumuli" "insert into akumuli_rescue_points (storage_id) select storage_id from akumuli_series where $lacking;
        select changes();") || { echo "start.sh: cannot look for series in name only in $path/db.akumuli" >&2; return; }
    [ "$mended" = 0 ] || echo "start.sh: a kill had left $mended series in name only; they are empty now" >&2
}

if [ ! -e "$path/db.akumuli" ]; then
    mkdir -p "$path"
    akumulid --config "$config" --create
else
    mend
fi

# phase 1: what is before the first section that listens, and [HTTP]
http_only=$(mktemp)
trap 'rm -f "$http_only"' EXIT
awk '{ line = $0; gsub(/^[ \t]+|[ \t\r]+$/, "", line) }
    line ~ /^\[/ { skip = (line != "[HTTP]") }
    line ~ /^log4j/ { print; next }
    !skip { print }' "$config" > "$http_only"
# A SIGTERM that comes before it is ready for one ends it at once, and commits nothing: once more then. That loses nothing.
for try in 1 2 3 4 5; do
    akumulid --config "$http_only" &
    pid=$!
    wait_until_it_answers
    sleep 0.3
    code=0
    stop_it || code=$?
    [ "$code" != 0 ] || break
    echo "start.sh: try $try: the first phase ended with $code" >&2
done
[ "$code" = 0 ] || exit "$code"
[ -z "$stopping" ] || exit 0

# phase 2
akumulid --config "$config" &
pid=$!
wait_until_it_answers
{ printf '+headrace.start host=%s\r\n:%s\r\n+1\r\n' "$(hostname | tr -c 'A-Za-z0-9.\n-' _)" "$(date +%s%N)" > "/dev/tcp/$tcp_host/$tcp_port"; } ||
    echo "start.sh: cannot write headrace.start: a later crash will need a longer replay" >&2
echo "start.sh: akumulid is up, HTTP $http_host:$http_port, TCP $tcp_host:$tcp_port"
code=0
while alive; do
    wait "$pid" && code=0 || code=$?
    # a signal to this script ends the wait, too
    if [ -n "$stopping" ] && alive; then code=0; stop_it || code=$?; fi
done
exit "$code"
