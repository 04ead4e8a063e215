#!/usr/bin/env bash
# Starts and stops the servers that tests and development need, on 127.0.0.1 alone.
#
#   services.sh up [NAME ...]   start those that do not run: s3 on S3_PORT (default 9000), kafka on KAFKA_PORT (9092)
#   services.sh down            stop all, and remove what they stored
#   services.sh status          say what runs
#
# A service whose program cannot be had on this machine is skipped with the reason; with CI=true that is a failure.
#
# A service NAME is four functions: program_NAME prints its program, start_NAME PROGRAM runs it in the background,
# answers_NAME asks whether it is there, about_NAME PORT says how to use it. Pid, port, log and data are in
# .services/NAME, or below the folder that EXOFLOW_SERVICES names.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
state="${EXOFLOW_SERVICES:-$(cd "$here/../.." && pwd)/.services}"
services=(s3 kafka)
declare -A port=([s3]="${S3_PORT:-9000}" [kafka]="${KAFKA_PORT:-9092}")
patience_seconds=30
s3_bucket=exoflow

program_s3() {
    "$here/versitygw.sh"
}

start_s3() {
    # Each folder of the server is a bucket.
    mkdir -p "$state/s3/data/$s3_bucket"
    ROOT_ACCESS_KEY=exoflow ROOT_SECRET_KEY=exoflowsecret setsid "$1" \
        --port "127.0.0.1:${port[s3]}" --keep-alive --quiet --health /health posix "$state/s3/data" \
        </dev/null >"$state/s3/log" 2>&1 9<&- &
    echo $! >"$state/s3/pid"
}

answers_s3() {
    local answer
    answer="$(ask "${port[s3]}" 'GET /health HTTP/1.0\r\n\r\n')" && [[ "$answer" == *VERSITYGW* ]]
}

about_s3() {
    echo "S3 at http://127.0.0.1:$1, bucket $s3_bucket; use it with:"
    echo "  export AWS_ENDPOINT_URL=http://127.0.0.1:$1 AWS_ACCESS_KEY_ID=exoflow AWS_SECRET_ACCESS_KEY=exoflowsecret"
    echo "  graph-stream run --store s3://$s3_bucket/runs ..."
}

program_kafka() {
    "$here/kafka.sh" jars >/dev/null && echo "$here/kafka.sh"
}

start_kafka() {
    setsid "$1" serve "$state/kafka/data" "${port[kafka]}" </dev/null >"$state/kafka/log" 2>&1 9<&- &
    echo $! >"$state/kafka/pid"
}

answers_kafka() {
    # Its port is open a moment before it does what it is asked for.
    grep -qsF "Kafka Server started" "$state/kafka/log"
}

about_kafka() {
    echo "Kafka at 127.0.0.1:$1, no authentication; use it with:"
    echo "  graph-stream run --source kafka://127.0.0.1:$1/TOPIC ..."
}

# What a port of this machine answers to a request; fails where nobody listens.
ask() (
    exec 2>/dev/null 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
    # shellcheck disable=SC2059 # the request is a format
    printf "$2" >&3
    timeout 5 cat <&3
)

# The pid of a service that this script has started and that still runs; pids come again, so its name counts too,
# and a process that has ended has none.
pid_of() {
    local pid
    pid="$(cat "$state/$1/pid" 2>/dev/null)" || return 1
    tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF "$state/$1/" && echo "$pid"
}

up() {
    local name program
    (($#)) || set -- "${services[@]}"
    for name in "$@"; do
        if [[ ! -v "port[$name]" ]]; then
            echo "There is no service '$name'; known are ${services[*]}." >&2
            exit 2
        fi
        if ! pid_of "$name" >/dev/null; then
            if ! program="$("program_$name")"; then
                echo "Without it the service $name is skipped." >&2
                [[ "${CI:-}" != true ]] || exit 1
                continue
            fi
            start "$name" "$program"
        fi
        "about_$name" "$(cat "$state/$name/port")"
    done
}

# Starts a service, by name and program.
start() {
    local pid patience=50
    # Who was killed a moment ago closes its port a moment later.
    while (exec 3<>"/dev/tcp/127.0.0.1/${port[$1]}") 2>/dev/null; do
        if ((patience-- > 0)); then
            sleep 0.1
            continue
        fi
        echo "Port ${port[$1]} is in use by another process; stop it, or choose another port with ${1^^}_PORT=..." >&2
        exit 1
    done
    mkdir -p "$state/$1"
    echo "${port[$1]}" >"$state/$1/port"
    "start_$1" "$2"
    pid="$(cat "$state/$1/pid")"
    SECONDS=0
    until "answers_$1"; do
        if ! kill -0 "$pid" 2>/dev/null || ((SECONDS > patience_seconds)); then
            echo "The service $1 did not start:" >&2
            tail -n 20 "$state/$1/log" >&2
            stop "$1"
            exit 1
        fi
        sleep 0.1
    done
}

stop() {
    local pid
    if pid="$(pid_of "$1")"; then
        kill "$pid"
        SECONDS=0
        while pid_of "$1" >/dev/null; do
            ((SECONDS < patience_seconds)) || kill -KILL "$pid" 2>/dev/null || true
            sleep 0.1
        done
    fi
    rm -rf "${state:?}/$1"
}

down() {
    local name
    for name in "${services[@]}"; do
        stop "$name"
    done
    rm -rf "$state"
}

status() {
    local name
    for name in "${services[@]}"; do
        if pid_of "$name" >/dev/null; then
            "about_$name" "$(cat "$state/$name/port")"
        else
            echo "$name: not running"
        fi
    done
}

case "${1:-}" in
    up | down)
        exec 9<"${BASH_SOURCE[0]}"
        flock 9
        "$@"
        ;;
    status) status ;;
    *)
        echo "usage: $0 up [NAME ...] | down | status" >&2
        exit 2
        ;;
esac
