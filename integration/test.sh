#!/bin/bash
# Everything that is checked before a change goes in: format, lints, all tests, the demo, and PostgreSQL, fio, libnbd's and
# QEMU's tools, file systems and the kernel's NBD client on a real cluster, also on the oldest kernel that is supported.
#
#   integration/test.sh              everything but hosts and units
#   integration/test.sh PART...      only these: format lint scripts build doctests simulator planted tests
#                                    demo copy tools qemu reconnect fio flips filesystems compare postgres resync full devices alone metrics
#                                    agents cluster soak kernel oldest hosts units
#   integration/test.sh hosts units  what the README says of three hosts, and failover.md of failover,
#                                    resets and watchdogs, under systemd in a guest: by hand, since they
#                                    take minutes
#   NO_INSTALL=1                     install nothing
#
# As root it installs the Debian packages that are missing, without starting or enabling a service, while the parts run
# that need none. Else it names them, and what needs them is skipped by name. Logs are in target/test-logs. The
# last line is "N passed, N failed, N skipped"; each test of the suites counts, and each other part counts as one.

set -u
cd "$(dirname "$0")/.." || exit 1
# Where Debian keeps what only root is expected to use.
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin LC_ALL=C CARGO_TERM_COLOR=never
logs=$(realpath -m "${CARGO_TARGET_DIR:-target}")/test-logs
mkdir -p "$logs"
passed=0 failed=0 skipped=0

# Program or file, and the package that has it.
packages=(
    nbdcopy:libnbd-bin nbdfuse:libnbd-bin fusermount3:fuse3 nbd-client:nbd-client fio:fio
    qemu-img:qemu-utils qemu-storage-daemon:qemu-system-common nbdsh:python3-libnbd stress-ng:stress-ng
    mkfs.ext4:e2fsprogs mkfs.xfs:xfsprogs unshare:util-linux losetup:mount ip:iproute2 pgrep:procps insmod:kmod
    nbdkit:nbdkit nft:nftables linux.uml:user-mode-linux /lib/systemd/systemd-udevd:udev debugfs:e2fsprogs /usr/bin/python3:python3
    /usr/lib/python3/dist-packages/prometheus_client:python3-prometheus-client
    /usr/lib/postgresql/15/bin/postgres:postgresql-15
    corosync:corosync pacemakerd:pacemaker crm_mon:pacemaker-cli-utils crm:crmsh ocf-tester:resource-agents xmllint:libxml2-utils
    arping:iputils-arping /usr/share/cluster/relaxng/metadata.rng:fence-agents pcs:pcs
    /usr/lib/python3/dist-packages/psycopg2:python3-psycopg2
)

say() { echo "== $*"; }
pass() { passed=$((passed + 1)); echo "passed: $1 ($2 s)"; }
skip() { skipped=$((skipped + 1)); echo "skipped: $1 ($2)"; }
fail() {
    failed=$((failed + 1))
    echo "failed: $1; the end of $2:"
    tail -n 60 "$2" | sed 's/^/    /'
}

missing_packages() {
    local pair
    for pair in "${packages[@]}"; do
        [ -e "${pair%%:*}" ] || command -v "${pair%%:*}" > /dev/null || echo "${pair#*:}"
    done | sort -u
}

# Installs packages so that no daemon is started now, and none that is new is enabled for later.
install_packages() {
    local links_before links_after link policy=/usr/sbin/policy-rc.d clusters=/etc/postgresql-common/createcluster.conf
    local made_policy=
    enabled_links() { find /etc/systemd/system /etc/systemd/user /etc/rc?.d -type l 2> /dev/null | sort; }
    links_before=$(enabled_links)
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' > $policy && chmod 755 $policy && made_policy=1
    fi
    if [ ! -e $clusters ]; then
        mkdir -p "$(dirname $clusters)" && echo 'create_main_cluster = false' > $clusters
    fi
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
    local apt=(apt-get -q -o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confold)
    "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends "$@"
    local code=$?
    [ -z "$made_policy" ] || rm -f $policy
    links_after=$(enabled_links)
    # What Debian enabled by itself is disabled again.
    comm -13 <(echo "$links_before") <(echo "$links_after") | while read -r link; do
        case $link in
            /etc/systemd/*) rm -f "$link" ;;
            /etc/rc?.d/S*) mv "$link" "${link%/S*}/K01${link##*/S[0-9][0-9]}" ;;
        esac
    done
    return $code
}

# part NAME COMMAND...: exit 0 is passed, 77 is skipped with the reason that the log ends with
part() {
    local name=$1 start=$SECONDS code
    shift
    wanted "$name" || return 0
    say "$name"
    "$@" > "$logs/$name.log" 2>&1
    code=$?
    case $code in
        0) pass "$name" $((SECONDS - start)) ;;
        77) skip "$name" "$(sed -n 's/^SKIP: //p' "$logs/$name.log" | tail -n 1)" ;;
        *) fail "$name" "$logs/$name.log" ;;
    esac
    return $code
}

# suite NAME COMMAND...: a test runner, whose own counts are added
suite() {
    local name=$1 start=$SECONDS log code good bad ignored
    log=$logs/$1.log
    shift
    wanted "$name" || return 0
    say "$name"
    "$@" > "$log" 2>&1
    code=$?
    # nextest: "Summary [..] 9 tests run: 7 passed, 2 failed, 1 skipped"; cargo test: "test result: ..."
    count() { sed -nE "/^ *Summary |^test result: /s/.*[ ,]([0-9]+) $1.*/\1/p" "$log" | awk '{ n += $1 } END { print n + 0 }'; }
    good=$(count passed) bad=$(($(count failed) + $(count 'timed out') + $(count 'exec failed')))
    ignored=$(sed -nE '/^ *Summary /s/.* ([0-9]+) skipped.*/\1/p; /^test result: /s/.* ([0-9]+) ignored.*/\1/p' "$log" | awk '{ n += $1 } END { print n + 0 }')
    passed=$((passed + good)) skipped=$((skipped + ignored))
    # "SKIP [..] (..) binary [reason] test", or "test [reason] test ... ignored".
    sed -nE 's/^ *SKIP \[[^]]*\] (\([^)]*\) )?[^ ]+ (.*)/\2/p; s/^test (.*[^ ]) +\.\.\. ignored.*/\1/p' "$log" |
        sed -E 's/^\[([^]]*)\] (.*)/skipped: \2 (\1)/; t; s/(.*)/skipped: \1 (ignored)/' | sort -u
    if [ $code != 0 ] && [ "$bad" = 0 ]; then bad=1; fi
    if [ "$bad" = 0 ]; then
        echo "passed: $name, $good tests ($((SECONDS - start)) s)"
    else
        grep -hE '^ +(FAIL|TIMEOUT|SIGABRT) |^test .* FAILED$' "$log" | sort -u | sed 's/^ */    /'
        fail "$name" "$log"
        failed=$((failed + bad - 1))
    fi
    return $code
}

wanted() {
    local name
    [ ${#only[@]} = 0 ] && return 0
    for name in "${only[@]}"; do [ "$name" = "$1" ] && return 0; done
    return 1
}

check_scripts() {
    local file
    git ls-files -z | xargs -0 grep -lE '^#!/bin/(ba)?sh|^# shellcheck shell=' -- | while read -r file; do
        bash -n "$file" || exit 1
    done || return 1
    command -v shellcheck > /dev/null || return 0
    shellcheck -x -P SCRIPTDIR -S warning integration/*.sh integration/real/*.sh .ci/run && shellcheck tools/ocf/* tools/reset-when-fenced
}

run_tests() {
    if cargo nextest --version > /dev/null 2>&1; then
        cargo nextest run --locked --cargo-profile sim --workspace --no-fail-fast --status-level skip
    else
        cargo test --locked --profile sim --workspace --no-fail-fast --all-targets
    fi
}

# Bugs are planted in the core, and the simulator must find them.
prove_checkers() {
    cargo clippy --locked -p simulator --features planted --all-targets -- -D warnings &&
        cargo sim-planted -- --planted-sample
}

only=("$@")
# These use the programs, so they imply that they are built.
for name in tests demo copy tools qemu reconnect fio flips filesystems compare postgres resync full devices alone metrics agents cluster soak kernel oldest hosts units; do
    [ ${#only[@]} = 0 ] || ! wanted "$name" || { only+=(build); break; }
done
missing=$(missing_packages | tr '\n' ' ')
installer=
if [ -n "$missing" ] && [ "$(id -u)" = 0 ] && [ -z "${NO_INSTALL:-}" ] && command -v apt-get > /dev/null; then
    say "installing $missing"
    # shellcheck disable=SC2086
    install_packages $missing < /dev/null > "$logs/install.log" 2>&1 &
    installer=$!
fi

# Waits for the packages, and names those that are still missing.
packages_installed() {
    if [ -n "$installer" ]; then
        wait "$installer" || { echo "could not install all of it:"; tail -n 5 "$logs/install.log"; }
        say "installed what was missing, $SECONDS s after the start"
    fi
    missing=$(missing_packages | tr '\n' ' ')
    [ -z "$missing" ] || echo "missing packages: $missing(apt-get install $missing)"
}

# What needs none of the packages comes first: they are installed meanwhile.
part format cargo fmt --all --check
part lint cargo clippy --locked --workspace --all-targets -- -D warnings
part scripts check_scripts
part build cargo build --locked --release --bins -p nbd-server -p tools -p integration
built=$?
if [ $built = 0 ]; then
    suite doctests cargo test --locked --profile sim --workspace --doc
    # A million operations of clients and more; always the same lives, so that a failure stays.
    if wanted simulator && part simulator cargo sim -- --seeds 1050 --from 1; then
        tail -n 3 "$logs/simulator.log" | head -n 2
    fi
    part planted prove_checkers
fi
packages_installed
if [ $built = 0 ]; then
    REPLICATOR_PROGRAMS=${logs%/*}/release
    export REPLICATOR_PROGRAMS
    suite tests run_tests
    part demo cargo demo -- --json
    part copy integration/real/copy.sh
    part tools integration/real/tools.sh
    part qemu integration/real/qemu.sh
    part reconnect integration/real/reconnect.sh
    part fio integration/real/fio.sh
    part flips integration/real/flips.sh
    part filesystems integration/real/filesystems.sh
    part compare integration/real/compare.sh
    part postgres integration/real/postgres.sh
    part resync integration/real/resync.sh
    part full integration/real/full.sh
    part devices integration/real/devices.sh
    part alone integration/real/alone.sh
    part metrics integration/real/metrics.sh
    part agents integration/real/agents.sh
    part cluster integration/real/cluster.sh
    part soak integration/soak.sh --seconds 30 --seed 1
    part kernel integration/real/kernel.sh
    part oldest integration/real/oldest.sh
    # Only when they are asked for.
    if [ ${#only[@]} != 0 ]; then
        part hosts integration/real/hosts.sh
        part units integration/real/units.sh
    fi
fi

echo "$SECONDS s"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
