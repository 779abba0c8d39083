#!/usr/bin/env bash
# Whether a RabbitMQ lets a user in: the handshake of AMQP 0-9-1 until user and password are checked. Needs no client.
#
#   scripts/amqp-login.sh HOST PORT USER PASSWORD

set -euo pipefail
host="$1" port="$2" user="$3" password="$4"
# Lengths are in bytes.
LC_ALL=C

byte() {
  # shellcheck disable=SC2059 # the format is the byte
  printf "\\x$(printf '%02x' "$1")"
}

# A 32-bit number, most significant byte first.
long() {
  byte $(($1 >> 24 & 255))
  byte $(($1 >> 16 & 255))
  byte $(($1 >> 8 & 255))
  byte $(($1 & 255))
}

# Reads a method frame (type 1, channel 0, size, class, method, arguments, end); prints class and method.
read_method() {
  local head
  head="$(head -c 7 <&3 | od -An -v -tx1 | tr -d ' \n')"
  [[ $head == 010000* ]] || return 1
  head -c $((16#${head:6:8} + 1)) <&3 | od -An -v -tx1 -N4 | tr -d ' \n'
}

exec 3<>"/dev/tcp/$host/$port"
printf 'AMQP\0\0\x09\x01' >&3
[[ $(read_method) == 000a000a ]] # connection.start

# connection.start-ok: no client properties, the mechanism, its response, the locale.
response=$((${#user} + ${#password} + 2))
{
  printf '\x01\0\0'
  long $((4 + 4 + 6 + 4 + response + 6))
  printf '\0\x0a\0\x0b\0\0\0\0\x05PLAIN'
  long "$response"
  printf '\0%s\0%s\x05en_US\xce' "$user" "$password"
} >&3
[[ $(read_method) == 000a001e ]] # connection.tune
