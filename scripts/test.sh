#!/usr/bin/env bash
# Runs every check and every test, and does all the set-up itself; see --help.

set -euo pipefail
shopt -s inherit_errexit

usage() {
  cat <<'TEXT'
Runs every check and every test, and does all the set-up itself.

  scripts/test.sh                     all of it: format, clippy, dependencies, build, tests
  scripts/test.sh -- ARGUMENTS        only the tests that these arguments of cargo nextest run
                                      (or of cargo test, where nextest is not installed) choose
  scripts/test.sh --with COMMAND…     only this command, with the servers up and their URLs set

The tests need PostgreSQL and RabbitMQ. Each of them is the first of:
  1. the server that TRIGGERS_TEST_DATABASE_URL or TRIGGERS_TEST_AMQP_URL names;
  2. a server of this machine on the usual port that lets us in
     (postgres or the current user without a password; guest with the password guest);
  3. a container, where docker compose and its engine run;
  4. a private server in a temporary directory, removed at the end.
TRIGGERS_TEST_PRIVATE=1 goes straight to 4. Some tests restart servers, and always start private ones;
where PostgreSQL's or RabbitMQ's programs are missing, Debian's packages are installed, as root or through sudo.

Some tests run examples in Python, JavaScript and Java, and libraries that others wrote: python3 with pip, node with npm,
and java must be there. The libraries are installed into target, pinned, once a version.

In servers that were there before, the tests make databases and queues of their own, and remove them.
TEXT
}

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/test-servers.sh
source scripts/test-servers.sh

section() {
  printf '\n== %s (%d s)\n' "$1" "$SECONDS"
}

note() {
  printf '%s\n' "$1"
}

fail() {
  printf 'scripts/test.sh: %s\n' "$1" >&2
  exit 1
}

check_tools() {
  command -v cargo >/dev/null || fail 'Rust is missing: install it from https://rustup.rs'
  command -v cc >/dev/null || fail 'a C compiler is missing: install one, on Debian with: apt-get install gcc libc6-dev'
}

# Files that only other tools read: checked as far as those tools are here.
check_files() {
  if command -v shellcheck >/dev/null; then
    shellcheck --external-sources scripts/*.sh .ci/run
  else
    note 'shellcheck is not installed: the scripts are not checked'
  fi
  if docker compose version >/dev/null 2>&1; then
    sed 's/=$/=set/' deploy/env.example | docker compose --env-file /dev/stdin --file docker-compose.yml config --quiet
    docker compose --file deploy/test-services.yml config --quiet
  else
    note 'docker compose is not installed: the compose files are not checked'
  fi
}

check_dependencies() {
  if ! command -v cargo-deny >/dev/null; then
    note 'cargo-deny is not installed: advisories, licences and sources are not checked'
    return
  fi
  cargo deny --all-features check bans licenses sources
  if cargo deny fetch db >/dev/null 2>&1; then
    cargo deny --all-features check --disable-fetch advisories
  else
    note 'the advisory database cannot be fetched: advisories are not checked'
  fi
}

check_code() {
  cargo fmt --version >/dev/null 2>&1 || fail 'rustfmt is missing: rustup component add rustfmt'
  cargo clippy --version >/dev/null 2>&1 || fail 'clippy is missing: rustup component add clippy'
  section 'Format'
  cargo fmt --all --check
  section 'Scripts and compose files'
  check_files
  section 'Dependencies'
  check_dependencies
  section 'Clippy'
  cargo clippy --workspace --all-targets --locked -- -D warnings
}

# Libraries that others wrote, which the tests use as they are: pinned with hashes, each set in a directory of its own
# under target, and installed only when what is pinned has changed. Nothing is asked of a registry otherwise.
install_libraries() {
  install_from_pypi tests/sdk target/python
  install_from_pypi tests/documented/standardwebhooks target/libraries/python
  install_from_pypi tests/schemathesis target/libraries/schemathesis
  install_from_npm tests/documented/standardwebhooks target/libraries/javascript
  install_from_npm examples/zapier target/libraries/zapier
}

# What the requirements.txt of a directory names.
install_from_pypi() {
  local requirements="$1/requirements.txt" directory="$2"
  if cmp --silent "$requirements" "$directory/requirements.txt"; then
    return
  fi
  python3 -m pip --version >/dev/null 2>&1 ||
    fail 'Python with pip is missing, for the libraries that the tests use: on Debian, apt-get install python3-pip'
  rm -rf -- "$directory"
  python3 -m pip install --quiet --root-user-action ignore --disable-pip-version-check --require-hashes --no-deps \
    --only-binary :all: --target "$directory" --requirement "$requirements" ||
    fail "what $requirements names cannot be installed from PyPI"
  cp -- "$requirements" "$directory/requirements.txt"
}

# What the package-lock.json of a directory names. No package's own scripts are run.
install_from_npm() {
  local lock="$1/package-lock.json" directory="$2"
  if cmp --silent "$lock" "$directory/installed.json"; then
    return
  fi
  command -v npm >/dev/null ||
    fail 'npm is missing, for the libraries that the tests use: on Debian, apt-get install nodejs npm'
  rm -rf -- "$directory"
  mkdir -p -- "$directory"
  cp -- "$1/package.json" "$lock" "$directory"
  npm ci --prefix "$directory" --silent --ignore-scripts --no-audit --no-fund --omit=dev ||
    fail "what $lock names cannot be installed from the registry of npm"
  cp -- "$lock" "$directory/installed.json"
}

run_tests() {
  section 'Libraries of others'
  install_libraries
  section 'Build'
  cargo build --workspace --bins --locked
  section 'Tests'
  if command -v cargo-nextest >/dev/null; then
    cargo nextest run --workspace --locked "$@"
    if (($# == 0)); then
      cargo test --workspace --locked --doc
    fi
  else
    note 'cargo-nextest is not installed: using cargo test'
    cargo test --workspace --locked "$@"
  fi
}

case "${1-}" in
  -h | --help)
    usage
    exit
    ;;
  '' | -- | --with) ;;
  *) fail "unknown argument $1; see --help" ;;
esac
mode="${1-}"
shift $(($# > 0 ? 1 : 0))
[[ $mode != --with || $# -gt 0 ]] || fail '--with needs a command; see --help'

trap 'stop_servers' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

check_tools
section 'Servers'
find_programs
start_servers
case "$mode" in
  --with) "$@" ;;
  --) run_tests "$@" ;;
  *)
    check_code
    run_tests
    ;;
esac
section 'All is well'
