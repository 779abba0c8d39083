#!/usr/bin/env bash
# Injects faults into a deployment under load, and says what held; see --help.

set -euo pipefail
shopt -s inherit_errexit

usage() {
  cat <<'TEXT'
Injects faults into the real binaries with RabbitMQ and PostgreSQL of its own, while events flow, and checks that what
was acknowledged is delivered. Prints a report, and writes it to target/faults/report.md. See docs/testing.md.

  scripts/faults.sh                   every fault once, briefly
  scripts/faults.sh --seed N          in the order, and with the lengths and overlaps, of another run (default: a new one)
  scripts/faults.sh --minutes N       longer faults, again and again, for at least so long
  scripts/faults.sh --seconds N       the same
  scripts/faults.sh --only A,B        these faults alone
  scripts/faults.sh --list            their names

Needs root (it mounts small disks, takes file descriptors, and runs PostgreSQL as postgres), a C compiler, and the
programs of PostgreSQL and RabbitMQ. Ends with 0 if everything held.
TEXT
}

fail() {
  printf 'scripts/faults.sh: %s\n' "$1" >&2
  exit 1
}

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
seed=$((RANDOM * 32768 + RANDOM))
list=
while (($# > 0)); do
  case "$1" in
    -h | --help)
      usage
      exit
      ;;
    --list)
      list=1
      shift
      continue
      ;;
    --seed | --minutes | --seconds | --only) [[ $# -gt 1 ]] || fail "$1 needs a value; see --help" ;;
    *) fail "unknown argument $1; see --help" ;;
  esac
  case "$1" in
    --seed) seed=$2 ;;
    --minutes) export FAULTS_SECONDS=$(($2 * 60)) ;;
    --seconds) export FAULTS_SECONDS=$2 ;;
    --only) export FAULTS_ONLY=$2 ;;
  esac
  shift 2
done

if [[ $list ]]; then
  # From the catalogue itself.
  grep -oE '"[a-z0-9]+(-[a-z0-9]+)+"' tests/faults/catalogue.rs | tr -d '"'
  exit
fi
[[ $EUID -eq 0 ]] || fail 'only root can mount the disks that are filled; run it as root'
command -v cc >/dev/null || fail 'a C compiler is missing: install one, on Debian with: apt-get install gcc libc6-dev'
export FAULTS_SEED=$seed
printf 'seed %s\n' "$seed"
cargo build --workspace --bins --locked
cargo test --package triggers-tests --test faults --locked -- --nocapture whatever_fails
