#!/bin/bash
# Which lines of the core the unit tests, the simulator's tests and some hundred random lives reach, and which they do
# not. What is not reached has to be in the table of docs/coverage.md, with a reason.
#
#   integration/coverage.sh [SEEDS]     300 unless told
#   integration/coverage.sh --judge     runs nothing: compares what the last run reached with the page as it is now
#
# Exit 1 if a line is not reached that the table does not know. It takes minutes, so it is run by hand. Everything it
# makes, its tool included, is in target/coverage. The toolchain has no llvm-tools, so the profiles are read by
# `cov` of the crate llvm_profparser; what an instrumented program writes is of the format of rustc's LLVM.

set -eu -o pipefail
cd "$(dirname "$0")/.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
dir=$target/coverage
profiles=$dir/profiles

measure() { # measure SEEDS
    local seeds=$1
    mkdir -p "$dir"
    rm -rf "$profiles"
    mkdir "$profiles"

    cov=$dir/tools/bin/cov
    if [ ! -x "$cov" ]; then
        llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
        cargo install -q llvm_profparser --version =0.15.0 --locked --features "__llvm_$llvm" \
            --root "$dir/tools" --target-dir "$dir/tools/build"
    fi

    # Only what is to be measured is instrumented, and the simulator, which the core's generic code becomes a part of.
    wrapper=$dir/rustc
    cat > "$wrapper" << 'END'
#!/bin/sh
for word; do
    case $word in replicator | simulator | sim) exec "$@" -C instrument-coverage ;; esac
done
exec "$@"
END
    chmod +x "$wrapper"
    export RUSTC_WORKSPACE_WRAPPER=$wrapper CARGO_TARGET_DIR=$dir

    build() { # build PACKAGE CARGO-ARGUMENT...: prints the program
        local package=$1
        shift
        LLVM_PROFILE_FILE=/dev/null cargo "$@" -q --locked --profile sim -p "$package" --message-format json-render-diagnostics |
            sed -n 's/.*"executable":"\([^"]*\)".*/\1/p'
    }

    run() { # run NAME PROGRAM ARGUMENT...: leaves what it reached in NAME.lines
        local name=$1 program=$2 start=$SECONDS
        shift 2
        LLVM_PROFILE_FILE=$profiles/$name.profraw "$program" "$@" > "$profiles/$name.log" 2>&1 || {
            echo "$name failed:"
            tail -n 20 "$profiles/$name.log"
            exit 1
        }
        "$cov" show --instr-profile "$profiles/$name.profraw" --object "$program" > "$profiles/$name.lines"
        echo "ran $name ($((SECONDS - start)) s)"
    }

    units=$(build replicator test --lib --no-run)
    stories=$(build simulator test --lib --no-run)
    lives=$(build simulator build --bin sim)
    run units "$units" -q
    run stories "$stories" -q
    run lives "$lives" --seeds "$seeds" --from 1
}

[ "${1-}" = --judge ] || measure "${1:-300}"

awk -v root="$PWD/replicator/src/" '
    function is_test(file) { return file ~ /(^|\/)(tests|testing)(\.rs|\/)/ }

    # The tables: | `file` | `function:lines`, `function:lines` |
    FILENAME ~ /\.md$/ {
        if (split($0, cell, "|") < 4 || cell[2] !~ /`.*\.rs`/) next
        gsub(/[` ]/, "", cell[2])
        gsub(/[` ]/, "", cell[3])
        count = split(cell[3], entries, ",")
        for (n = 1; n <= count; n++) {
            split(entries[n], entry, ":")
            known[cell[2] ":" entry[1]] += entry[2]
        }
        next
    }

    # A file of the report begins.
    !/^ *[0-9]+\|/ {
        path = $0
        file = ""
        at = index(path, "replicator/src/")
        if (at) {
            file = substr(path, at + length("replicator/src/"))
            if (is_test(file)) file = ""
        }
        within = ""
        next
    }
    file == "" { next }
    {
        split($0, part, "|")
        line = part[1] + 0
        source = substr($0, index($0, "|") + 1)
        source = substr(source, index(source, "|") + 1)
        if (match(source, /(^|[ (])fn [a-z_0-9]+/)) {
            within = substr(source, RSTART, RLENGTH)
            sub(/.*fn /, "", within)
        }
        if (part[2] !~ /[0-9]/) next
        if (!((file, line) in hits)) {
            hits[file, line] = 0
            place[file, line] = within
            files[file] = 1
            if (line > last[file]) last[file] = line
        }
        hits[file, line] += part[2]
    }

    END {
        sorted = "sort"
        for (file in files) {
            total = reached = 0
            for (line = 1; line <= last[file]; line++) if ((file, line) in hits) {
                total++
                if (hits[file, line] > 0) reached++
                else {
                    key = file ":" place[file, line]
                    missed[key] = missed[key] " " line
                    many[key]++
                }
            }
            all += total
            all_reached += reached
            printf "%-32s %5d of %5d lines  %5.1f %%\n", file, reached, total, 100 * reached / total | sorted
        }
        close(sorted)
        printf "%-32s %5d of %5d lines  %5.1f %%\n\n", "all", all_reached, all, 100 * all_reached / all
        for (key in missed) {
            mark = ""
            if (many[key] > known[key] + 0) {
                mark = sprintf(" UNKNOWN: %d lines, docs/coverage.md says %d", many[key], known[key])
                unknown++
            }
            printf "%s: not reached:%s%s\n", key, missed[key], mark | sorted
        }
        close(sorted)
        print ""
        for (key in known) if (known[key] > many[key] + 0) {
            printf "%s: docs/coverage.md says %d lines, %d are not reached\n", key, known[key], many[key] | sorted
        }
        close(sorted)
        if (unknown) {
            printf "%d functions have lines that are not reached and that docs/coverage.md does not know\n", unknown
            exit 1
        }
    }
' docs/coverage.md "$profiles"/*.lines
