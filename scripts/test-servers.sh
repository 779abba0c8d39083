# shellcheck shell=bash
# The servers that the tests need, for scripts/test.sh: found, or started in containers, or started from the programs of
# this machine in a temporary directory. What is started here is stopped and removed here; nothing else is.

# Empty until something is started.
private_dir=
compose_project=
# Each a process and the signal that stops it in order.
private_servers=()
epmd_port=

# --- The servers' programs -------------------------------------------------------------------------------------------

# Puts PostgreSQL's programs on the PATH: Debian keeps initdb and postgres elsewhere.
find_postgres() {
  local directory
  if ! command -v initdb >/dev/null; then
    for directory in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin; do
      [[ -x $directory/initdb ]] && PATH="$directory:$PATH"
    done
  fi
  command -v initdb >/dev/null && command -v psql >/dev/null || return 1
  # The directory behind a link, where all of them are.
  postgres_bin="$(dirname -- "$(readlink -f -- "$(command -v initdb)")")"
  [[ -x $postgres_bin/postgres ]]
}

# Debian's rabbitmq-server is a wrapper for its system service; behind it is RabbitMQ's own.
find_rabbitmq() {
  if [[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ]]; then
    rabbitmq_server=/usr/lib/rabbitmq/bin/rabbitmq-server
  else
    rabbitmq_server="$(command -v rabbitmq-server)"
  fi
}

find_programs() {
  local missing=()
  find_postgres || missing+=(postgresql)
  find_rabbitmq || missing+=(rabbitmq-server)
  command -v pgrep >/dev/null || missing+=(procps)
  ((${#missing[@]} == 0)) && return
  command -v apt-get >/dev/null \
    || fail "the programs of ${missing[*]} are missing (the tests restart servers of their own): install them"
  install_packages "${missing[@]}"
  find_postgres || fail 'PostgreSQL is installed but initdb, postgres or psql cannot be found'
  find_rabbitmq || fail 'RabbitMQ is installed but rabbitmq-server cannot be found'
}

# Debian starts a service when its package is installed, unless this file says no. An existing one is left alone.
install_packages() {
  local as_root=() log
  if ((EUID != 0)); then
    command -v sudo >/dev/null || fail "installing $* needs root: run as root, or: apt-get install $*"
    as_root=(sudo)
    [[ -t 0 ]] || as_root+=(--non-interactive)
  fi
  note "installing Debian packages: $*"
  log="$(mktemp)"
  "${as_root[@]}" sh -eu -c '
    if ! [ -e /usr/sbin/policy-rc.d ]; then
      trap "rm -f /usr/sbin/policy-rc.d" EXIT
      printf "#!/bin/sh\nexit 101\n" >/usr/sbin/policy-rc.d
      chmod 755 /usr/sbin/policy-rc.d
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -qq --yes --no-install-recommends "$@"
  ' sh "$@" >"$log" 2>&1 </dev/null || {
    cat "$log" >&2
    rm -f "$log"
    fail "the packages could not be installed: $*"
  }
  rm -f "$log"
}

# --- Do they answer? -------------------------------------------------------------------------------------------------

# Whether a PostgreSQL lets us in and lets us make databases.
postgres_answers() {
  local answer
  answer="$(PGCONNECT_TIMEOUT=5 psql --no-psqlrc --no-password --tuples-only --no-align --dbname "$1" --command \
    'SELECT rolsuper OR rolcreatedb FROM pg_roles WHERE rolname = current_user' 2>/dev/null </dev/null)" \
    && [[ $answer == t ]]
}

percent_decode() {
  printf '%b' "${1//%/\\x}"
}

# Whether a RabbitMQ lets us in. (TLS is left to the tests.)
rabbitmq_answers() {
  local address='^amqp://(([^:@/]*)(:([^@/]*))?@)?([^:/@]+)(:([0-9]+))?(/[^?]*)?(\?.*)?$'
  [[ $1 == amqps://* ]] && return
  [[ $1 =~ $address ]] || return 1
  timeout 10 scripts/amqp-login.sh "${BASH_REMATCH[5]}" "${BASH_REMATCH[7]:-5672}" \
    "$(percent_decode "${BASH_REMATCH[2]:-guest}")" "$(percent_decode "${BASH_REMATCH[4]:-guest}")" \
    >/dev/null 2>&1 </dev/null
}

without_password() {
  sed -E 's#//([^:@/]*):[^@]*@#//\1:…@#' <<<"$1"
}

# --- Finding and starting --------------------------------------------------------------------------------------------

start_servers() {
  local url containers=false private=false
  [[ ${TRIGGERS_TEST_PRIVATE-} == 1 ]] && private=true
  if [[ $private == true ]]; then
    unset TRIGGERS_TEST_DATABASE_URL TRIGGERS_TEST_AMQP_URL
  fi

  if [[ -n ${TRIGGERS_TEST_DATABASE_URL-} ]]; then
    postgres_answers "$TRIGGERS_TEST_DATABASE_URL" || fail \
      "TRIGGERS_TEST_DATABASE_URL: no PostgreSQL that lets us make databases answers at $(without_password "$TRIGGERS_TEST_DATABASE_URL")"
  elif [[ $private == false ]]; then
    for url in postgres://postgres@127.0.0.1:5432/postgres "postgres://$(id -un)@127.0.0.1:5432/postgres"; do
      if postgres_answers "$url"; then
        TRIGGERS_TEST_DATABASE_URL="$url"
        break
      fi
    done
  fi
  if [[ -n ${TRIGGERS_TEST_AMQP_URL-} ]]; then
    rabbitmq_answers "$TRIGGERS_TEST_AMQP_URL" || fail \
      "TRIGGERS_TEST_AMQP_URL: no RabbitMQ that lets us in answers at $(without_password "$TRIGGERS_TEST_AMQP_URL")"
  elif [[ $private == false ]]; then
    url=amqp://guest:guest@127.0.0.1:5672/%2f
    rabbitmq_answers "$url" && TRIGGERS_TEST_AMQP_URL="$url"
  fi

  if [[ -z ${TRIGGERS_TEST_DATABASE_URL-} || -z ${TRIGGERS_TEST_AMQP_URL-} ]]; then
    if [[ $private == false ]] && docker info >/dev/null 2>&1 && docker compose version >/dev/null 2>&1; then
      containers=true
    fi
    [[ -n ${TRIGGERS_TEST_DATABASE_URL-} ]] || start_server "$containers" postgres
    [[ -n ${TRIGGERS_TEST_AMQP_URL-} ]] || start_server "$containers" rabbitmq
  fi
  note "PostgreSQL: $(without_password "$TRIGGERS_TEST_DATABASE_URL")"
  note "RabbitMQ: $(without_password "$TRIGGERS_TEST_AMQP_URL")"
  export PATH TRIGGERS_TEST_DATABASE_URL TRIGGERS_TEST_AMQP_URL
}

start_server() {
  if [[ $1 == true ]]; then
    "start_${2}_container"
  else
    if [[ -z $private_dir ]]; then
      private_dir="$(mktemp --directory "${TMPDIR:-/tmp}/triggers-test.XXXXXX")"
      chmod 711 "$private_dir"
    fi
    "start_private_$2"
  fi
}

# --- Containers ------------------------------------------------------------------------------------------------------

compose() {
  docker compose --project-name "$compose_project" --file deploy/test-services.yml "$@"
}

start_container() {
  compose_project="triggers-test-$$"
  compose up --detach --quiet-pull --wait --wait-timeout 180 "$1" </dev/null || fail "the container of $1 did not start"
}

start_postgres_container() {
  start_container postgres
  TRIGGERS_TEST_DATABASE_URL="postgres://postgres:postgres@$(compose port postgres 5432)/postgres"
}

start_rabbitmq_container() {
  start_container rabbitmq
  TRIGGERS_TEST_AMQP_URL="amqp://guest:guest@$(compose port rabbitmq 5672)/%2f"
}

# --- Private servers -------------------------------------------------------------------------------------------------

# A port on which nobody answers, below those that the system gives out by itself.
free_port() {
  local port
  while true; do
    port=$((20000 + RANDOM % 12000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  echo "$port"
}

# Waits until a command succeeds; fails if the process ends or two minutes pass.
wait_until_up() {
  local name="$1" pid="$2" log="$3" deadline=$((SECONDS + 120))
  shift 3
  until "$@"; do
    if ! kill -0 "$pid" 2>/dev/null || ((SECONDS > deadline)); then
      tail -n 40 "$log" >&2
      fail "the private $name did not start; the end of its log is above"
    fi
    sleep 0.2
  done
}

# PostgreSQL refuses to run as root: then it runs as its package's user.
start_private_postgres() {
  local directory="$private_dir/postgres" port pid as_user=()
  mkdir -p "$directory"
  if ((EUID == 0)); then
    local user=postgres
    getent passwd "$user" >/dev/null || user=nobody
    as_user=(setpriv --reuid "$user" --regid "$(id -g "$user")" --clear-groups --)
    chown "$user:" "$directory"
  fi
  "${as_user[@]}" env LC_ALL=C "$postgres_bin/initdb" --pgdata "$directory/data" --username postgres --auth trust \
    --encoding UTF8 --no-sync >"$private_dir/initdb.log" 2>&1 </dev/null || {
    cat "$private_dir/initdb.log" >&2
    fail 'initdb failed'
  }
  port="$(free_port)"
  # Its data need not outlive the machine.
  (cd "$directory" && exec "${as_user[@]}" env LC_ALL=C "$postgres_bin/postgres" -D "$directory/data" -p "$port" \
    -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=300 -c fsync=off) \
    >"$private_dir/postgres.log" 2>&1 </dev/null &
  pid=$!
  # INT is PostgreSQL's fast shutdown: TERM waits for clients to leave.
  private_servers+=("$pid INT")
  TRIGGERS_TEST_DATABASE_URL="postgres://postgres@127.0.0.1:$port/postgres"
  wait_until_up PostgreSQL "$pid" "$private_dir/postgres.log" postgres_answers "$TRIGGERS_TEST_DATABASE_URL"
}

# Everything that RabbitMQ would share with another on this machine is its own: the port mapper (epmd) too.
start_private_rabbitmq() {
  local directory="$private_dir/rabbitmq" port pid
  mkdir -p "$directory"
  port="$(free_port)"
  epmd_port="$(free_port)"
  cat >"$directory/rabbitmq.conf" <<CONF
listeners.tcp.1 = 127.0.0.1:$port
disk_free_limit.absolute = 64MB
log.console = true
log.console.level = warning
log.file = false
CONF
  echo '[].' >"$directory/enabled_plugins"
  : >"$directory/rabbitmq-env.conf"
  # RUNNING_UNDER_SYSTEMD makes the start script exec the server, so that the process is the server's own.
  (cd "$directory" && exec env -u RABBITMQ_NODE_PORT HOME="$directory" ERL_EPMD_PORT="$epmd_port" \
    ERL_EPMD_ADDRESS=127.0.0.1 RUNNING_UNDER_SYSTEMD=true \
    RABBITMQ_NODENAME="triggers-test-$$@localhost" RABBITMQ_DIST_PORT="$(free_port)" \
    RABBITMQ_CONF_ENV_FILE="$directory/rabbitmq-env.conf" RABBITMQ_CONFIG_FILE="$directory/rabbitmq" \
    RABBITMQ_ADVANCED_CONFIG_FILE="$directory/advanced" RABBITMQ_GENERATED_CONFIG_DIR="$directory/generated" \
    RABBITMQ_ENABLED_PLUGINS_FILE="$directory/enabled_plugins" RABBITMQ_MNESIA_BASE="$directory/data" \
    RABBITMQ_LOG_BASE="$directory/log" RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='-kernel inet_dist_use_interface {127,0,0,1}' \
    "$rabbitmq_server") >"$private_dir/rabbitmq.log" 2>&1 </dev/null &
  pid=$!
  private_servers+=("$pid TERM")
  TRIGGERS_TEST_AMQP_URL="amqp://guest:guest@127.0.0.1:$port/%2f"
  wait_until_up RabbitMQ "$pid" "$private_dir/rabbitmq.log" rabbitmq_answers "$TRIGGERS_TEST_AMQP_URL"
}

# --- The end ---------------------------------------------------------------------------------------------------------

stop_servers() {
  local server pid signal deadline=$((SECONDS + 20))
  set +e
  if [[ -n $compose_project ]]; then
    compose down --volumes --timeout 5 >/dev/null 2>&1 </dev/null
  fi
  for server in "${private_servers[@]}"; do
    read -r pid signal <<<"$server"
    kill -s "$signal" "$pid" 2>/dev/null
  done
  for server in "${private_servers[@]}"; do
    read -r pid signal <<<"$server"
    while kill -0 "$pid" 2>/dev/null && ((SECONDS < deadline)); do
      sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null
    wait "$pid" 2>/dev/null
  done
  if [[ -n $epmd_port ]]; then
    epmd -port "$epmd_port" -kill >/dev/null 2>&1
  fi
  if [[ -n $private_dir ]]; then
    rm -rf -- "$private_dir"
  fi
}
