#!/bin/sh
# `make run`: the site of examples/single.toml and a simulated fleet. Ctrl-C drains; running again continues.
# Settings: HEADRACE_DATA (./data), DEVICES (200), RATE (200 events per second), SITE_ARGS (more `headrace run` arguments).
set -u
cd "$(dirname "$0")/.."
headrace=.venv/bin/headrace
data=${HEADRACE_DATA:-./data}
fleet=$data/fleet.csv
mkdir -p "$data"

$headrace devices fleet --count "${DEVICES:-200}" --csv "$fleet" || exit 1
$headrace context import "$fleet" --database "sqlite:///$data/context.db" || exit 1
# a terminal's Ctrl-C reaches all three of us: the site drains, the fleet stops sending, and we wait for both
trap 'kill -INT $site ${devices:-} 2>/dev/null' INT TERM
# shellcheck disable=SC2086
$headrace run examples/single.toml ${SITE_ARGS:-} &
site=$!
$headrace devices simulate --count "${DEVICES:-200}" --rate "${RATE:-200}" --url "${URL:-ws://127.0.0.1:8080}" --settle-s 5 &
devices=$!
cat >&2 <<END

  live page        http://127.0.0.1:8081/
  send events      ws://127.0.0.1:8080/v1/devices/{device}/events   (WebSocket or POST; docs/protocol.md)
  admin            http://127.0.0.1:9464/components   /metrics   /readyz
  lake             $data/lake   (Parquet: duckdb -c "select * from read_parquet('$data/lake/**/*.parquet', union_by_name=true) limit 5")
  Ctrl-C           drains: what was acked is stored before the site ends

END
wait $site
code=$?
while kill -0 $site 2>/dev/null; do wait $site; code=$?; done # a trapped signal ends the first wait early
kill -INT $devices 2>/dev/null
wait $devices 2>/dev/null
exit $code
