#!/usr/bin/env bash
# A single Kafka broker, which is its own controller (KRaft), on 127.0.0.1 alone.
#
#   kafka.sh jars                print the folder of the broker's jars, fetched with Maven where that has not been done
#   kafka.sh serve FOLDER PORT   run the broker, in this process, with its data in FOLDER; it goes on with what is there
#   kafka.sh serve FOLDER PORT LISTENERS FILE   the same with more listeners (SSL://HOST:PORT,SASL_SSL://HOST:PORT) and properties
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

jars() {
    # Named by the pom's content, so that another version of it is another folder.
    local folder needed
    folder="${XDG_CACHE_HOME:-$HOME/.cache}/exoflow/kafka-$(cksum <"$here/kafka-pom.xml" | cut -d ' ' -f 1)"
    needed="The local Kafka broker needs Java 17 or newer and Maven, and there is no"
    if ! command -v java >/dev/null; then
        echo "$needed 'java' on the PATH: apt-get install openjdk-17-jre-headless." >&2
        exit 1
    fi
    if [[ ! -d "$folder" ]]; then
        if ! command -v mvn >/dev/null; then
            echo "$needed 'mvn' on the PATH: apt-get install maven." >&2
            exit 1
        fi
        echo "Fetching the Kafka broker's jars (43 MB), once ..." >&2
        mkdir -p "${folder%/*}"
        local fetched
        fetched="$(mktemp -d "$folder.XXXXXX")"
        # shellcheck disable=SC2064 # the folder of now
        trap "rm -rf '$fetched'" EXIT
        mvn --batch-mode --quiet -Dstyle.color=never --file "$here/kafka-pom.xml" dependency:copy-dependencies \
            -DincludeScope=runtime -DoutputDirectory="$fetched/jars" >&2
        mv --no-target-directory "$fetched/jars" "$folder" 2>/dev/null || [[ -d "$folder" ]] # another was faster
    fi
    echo "$folder"
}

serve() {
    local folder="$1" port="$2" jars controller properties
    jars="$(jars)"
    controller="$(free_port)"
    properties="$folder/server.properties"
    mkdir -p "$folder"
    write_properties "$folder" "$port" "$controller" "${3:+,$3}" >"$properties"
    if [[ -n "${4:-}" ]]; then cat "$4" >>"$properties"; fi
    if [[ ! -f "$folder/log/meta.properties" ]]; then
        run "$jars" kafka.tools.StorageTool format --cluster-id exoflow-local-cluster --config "$properties" >/dev/null
    fi
    exec_as=exec run "$jars" kafka.Kafka "$properties"
}

# For one host, a small heap, and a broker that is killed and started again: what is known of it is soon forgotten.
write_properties() {
    cat <<END
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:$2,CONTROLLER://127.0.0.1:$3$4
advertised.listeners=PLAINTEXT://127.0.0.1:$2$4
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL
controller.listener.names=CONTROLLER
controller.quorum.voters=1@127.0.0.1:$3
log.dirs=$1/log
auto.create.topics.enable=false
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
group.initial.rebalance.delay.ms=0
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
num.network.threads=2
num.io.threads=2
background.threads=2
log.cleaner.dedupe.buffer.size=8388608
log.index.size.max.bytes=1048576
END
}

run() {
    local jars="$1"
    shift
    ${exec_as:-} java -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Djava.net.preferIPv4Stack=true \
        -Dorg.slf4j.simpleLogger.defaultLogLevel=warn \
        -Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info \
        -Dorg.slf4j.simpleLogger.log.org.apache.kafka.common.network.Selector=info \
        -Dorg.slf4j.simpleLogger.showDateTime=true \
        -cp "$jars/*" "$@"
}

# A port that nobody listens on, below those that the system hands to clients.
free_port() {
    local port
    while port=$((20000 + RANDOM % 12000)); (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
    echo "$port"
}

case "${1:-} $#" in
    "jars 1") jars ;;
    "serve 3" | "serve 5") shift && serve "$@" ;;
    *)
        echo "usage: $0 jars | serve FOLDER PORT [LISTENERS FILE]" >&2
        exit 2
        ;;
esac
