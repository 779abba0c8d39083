#!/usr/bin/env bash
# Holds a running server against the OpenAPI document that it serves; see --help.

set -euo pipefail
shopt -s inherit_errexit

usage() {
  cat <<'TEXT'
Runs Schemathesis over the OpenAPI document that a running server serves, on both engines: every operation, with valid
data and with data that is not. Does all the set-up, as scripts/test.sh, of which it is a part. See docs/testing.md.

  scripts/schemathesis.sh                 by the seed of tests/schemathesis/schemathesis.toml
  scripts/schemathesis.sh --seed N        by another
  scripts/schemathesis.sh --examples N    with at most so many requests an operation and phase, instead of 25
TEXT
}

fail() {
  printf 'scripts/schemathesis.sh: %s\n' "$1" >&2
  exit 1
}

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
while (($# > 0)); do
  case "$1" in
    -h | --help)
      usage
      exit
      ;;
    --seed | --examples) [[ $# -gt 1 ]] || fail "$1 needs a value; see --help" ;;
    *) fail "unknown argument $1; see --help" ;;
  esac
  case "$1" in
    --seed) export SCHEMATHESIS_SEED=$2 ;;
    --examples) export SCHEMATHESIS_EXAMPLES=$2 ;;
  esac
  shift 2
done

export SCHEMATHESIS_EXAMPLES="${SCHEMATHESIS_EXAMPLES:-25}"
arguments=(--package triggers-tests --test schemathesis)
if command -v cargo-nextest >/dev/null; then
  arguments+=(--ignore-default-filter --success-output immediate)
else
  arguments+=(-- --nocapture)
fi
exec scripts/test.sh -- "${arguments[@]}"
