#!/bin/sh
# Fuzzes one target for some seconds: fuzz/run.sh TARGET SECONDS [libFuzzer options]
# Stable Rust: the coverage counters are switched on by hand, so no nightly and no cargo-fuzz are needed.
set -eu
cd "$(dirname "$0")"
target=${1:?usage: run.sh TARGET SECONDS [libFuzzer options]; targets: $(ls fuzz_targets | sed 's/\.rs$//' | tr '\n' ' ')}
seconds=${2:?usage: run.sh TARGET SECONDS [libFuzzer options]}
shift 2

host=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 ${RUSTFLAGS:-}"
export RUSTFLAGS
# An explicit --target keeps the flags from build scripts.
cargo build --release --target "$host" --bin "$target"

# What is found goes to corpus/, which is not committed; seeds/ is.
out=${CARGO_TARGET_DIR:-target}/$host/release/$target
mkdir -p "corpus/$target" artifacts
exec "$out" "corpus/$target" "seeds/$target" \
    -max_total_time="$seconds" -max_len=8192 -artifact_prefix="artifacts/$target-" -print_final_stats=1 "$@"
