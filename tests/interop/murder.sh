# murder.sh - two Cyrus servers, be1 and be2, on loopback, as a MUPDATE murder whose master is raftdir. Sourced after cluster/lib.sh and cyrus.sh.
# shellcheck shell=bash disable=SC2154
#
# Everything below $murder ($work/murder). The servers run as nobody when the test is root. be1's services are started by raftdir-cyrus, be2's inherit LD_PRELOAD
# from master; tools get it from cyrus_tool. Passwords: whatever is given is right (preload_client.py passwords).

murder=$work/murder
murder_preload=$build_release/libraftdir-cyrus.so
murder_client=$top/tests/interop/preload_client.py
servers=(be1 be2)

free_ports() {  # free_ports N: that many, free at this moment
  python3 -c 'import socket, sys
s = [socket.socket() for _ in range(int(sys.argv[1]))]
for x in s: x.bind(("127.0.0.1", 0))
print(*(x.getsockname()[1] for x in s))' "$1"
}
imap_at() { cat "$murder/$1.imap"; }   # 127.0.0.1:PORT
lmtp_at() { cat "$murder/$1.lmtp"; }
murder_config() {  # murder_config SERVER
  local s=$1 d=$murder/$1 bin=$cyrus_root/usr/lib/cyrus/bin run=""
  [ "$s" != be1 ] || run="$build_release/raftdir-cyrus "
  mkdir -p "$d"/{mail,mail2,sieve,socket,db,proc,lock,log,msg,ptclient,user,quota}
  cat >"$d.conf" <<X
configdirectory: $d
proc_path: $d/proc
mboxname_lockpath: $d/lock
sievedir: $d/sieve
servername: $s.test
defaultdomain: test
virtdomains: userid
unixhierarchysep: yes
altnamespace: no
admins: cyrus murder
proxyservers: murder
lmtp_admins: murder cyrus
allowplaintext: yes
allowusermoves: yes
sasl_pwcheck_method: saslauthd
sasl_saslauthd_path: $murder/passwords
sasl_mech_list: PLAIN
mupdate_server: raftdir.invalid
mupdate_username: murder
proxy_authname: murder
proxy_password: secret
partition-default: $d/mail
partition-p2: $d/mail2
defaultpartition: default
mboxlist_db: twoskip
skiplist_unsafe: yes
failedloginpause: 0
autocreate_quota: -1
delete_mode: ${murder_delete_mode:-delayed}
syslog_prefix: $s
client_timeout: 30s
umask: 077
X
  cat >"$d.cyrus.conf" <<X
START {
  recover cmd="$bin/ctl_cyrusdb -C $d.conf -r"
}
SERVICES {
  imap cmd="$run$bin/imapd -C $d.conf -U 30" listen="$(imap_at "$s")" prefork=0 maxforkrate=0
  lmtp cmd="$run$bin/lmtpd -C $d.conf -U 30" listen="$(lmtp_at "$s")" prefork=0 maxforkrate=0
}
EVENTS {
}
X
}
# murder_env SERVER COMMAND...: the environment in which Cyrus' programs run.
murder_env() {
  local server=$1 libs="" user modules=$murder_preload:$build_release/tests/preload_names.so; shift
  user=$(id -un)
  [ "$user" != root ] || user=nobody
  # be1's master doesn't have it.
  if [ "$server" = be1 ] && [ "$1" = setsid ]; then modules=$build_release/tests/preload_names.so; fi
  if [ -n "$cyrus_root" ]; then
    libs=$(find "$cyrus_root/usr/lib" "$cyrus_root/lib" -maxdepth 2 -name 'lib*.so.*' -printf '%h\n' 2>/dev/null | sort -u | paste -sd:)
  fi
  env ${libs:+LD_LIBRARY_PATH="$libs" SASL_PATH="$(find "$cyrus_root/usr/lib" -maxdepth 2 -name sasl2 | paste -sd:)"} CYRUS_USER="$user" \
    RAFTDIR_CYRUS_CONF="$murder/$server.raftdir" PRELOAD_NAMES="$murder/names" LD_PRELOAD="$modules" "$@"
}
cyrus_tool() { local s=$1 program=$2; shift 2; murder_env "$s" "$cyrus_root/usr/lib/cyrus/bin/$program" -C "$murder/$s.conf" "$@"; }

# What each server's raftdir/cyrus.conf says: all nodes, with a client's certificate that Cyrus' user can read; be1 asks them, be2 reads the state of node 1 itself.
murder_raftdir_conf() {
  local endpoints="" n s
  for n in $(seq 1 "$CLUSTER_NODES"); do endpoints=${endpoints:+$endpoints,}$(node_client "$n"); done
  for s in "${servers[@]}"; do
    cat >"$murder/$s.raftdir" <<X
endpoints = "$endpoints"
ca = "$murder/tls/ca.crt"
cert = "$murder/tls/backend.crt"
key = "$murder/tls/backend.key"
unreachable_ms = 1500
lookup_timeout_ms = 5000
$([ "$s" != be2 ] || echo "local_dir = \"$(node_data 1)\"")
X
  done
}
# As --set for cluster_start: the group of Cyrus' user.
murder_local_group() { if [ "$(id -u)" = 0 ]; then id -gn nobody; else id -gn; fi; }
murder_setup() {  # after cluster_start
  local s ports
  mkdir -p "$murder/tls"
  chmod 755 "$work" "$murder" "$murder/tls"
  cp "$CLUSTER_TLS"/{ca.crt,backend.crt,backend.key} "$murder/tls/"
  murder_raftdir_conf
  # Node 1's state is read by another user: let him through to it.
  chmod 711 "$work/${cluster_name:-c}" "$(dirname "$(node_data 1)")"
  read -r -a ports < <(free_ports $((2 * ${#servers[@]})))
  : >"$murder/names"
  for s in "${servers[@]}"; do
    printf '127.0.0.1:%s\n' "${ports[0]}" >"$murder/$s.imap"
    printf '127.0.0.1:%s\n' "${ports[1]}" >"$murder/$s.lmtp"
    printf '%s.test imap 127.0.0.1 %s\n%s.test lmtp 127.0.0.1 %s\n' "$s" "${ports[0]}" "$s" "${ports[1]}" >>"$murder/names"
    ports=("${ports[@]:2}")
    murder_config "$s"
  done
  if [ "$(id -u)" = 0 ]; then chown -R nobody "$murder"; fi
}
wait_port() {  # wait_port HOST:PORT
  for _ in $(seq 150); do
    if (exec 3<>"/dev/tcp/${1%:*}/${1#*:}") 2>/dev/null; then return 0; fi
    sleep 0.1
  done
  return 1
}
murder_start() {
  local s
  python3 "$murder_client" passwords "$murder/passwords" >"$murder/passwords.log" 2>&1 </dev/null &
  echo $! >"$murder/passwords.pid"
  for _ in $(seq 50); do [ -S "$murder/passwords" ] && break; sleep 0.1; done
  for s in "${servers[@]}"; do
    murder_env "$s" setsid "$cyrus_root/usr/lib/cyrus/bin/master" -C "$murder/$s.conf" -M "$murder/$s.cyrus.conf" -p "$murder/$s/master.pid" -D \
      >"$murder/$s.out" 2>&1 </dev/null &
    echo $! >"$murder/$s.pid"
  done
  for s in "${servers[@]}"; do wait_port "$(imap_at "$s")" || { cat "$murder/$s.out" >&2; fail "$s does not start"; }; done
}
# Only our own: the masters that we have started, and their children.
descendants() { local c; for c in $(cat "/proc/$1/task/$1/children" 2>/dev/null); do echo "$c"; descendants "$c"; done; }
murder_stop() {
  local s pid pids=()
  for s in "${servers[@]}" passwords; do
    pid=$(cat "$murder/$s.pid" 2>/dev/null) || continue
    rm -f "$murder/$s.pid"
    # shellcheck disable=SC2207
    pids+=("$pid" $(descendants "$pid"))
  done
  [ ${#pids[@]} != 0 ] || return 0
  kill -TERM "${pids[@]}" 2>/dev/null || true
  for _ in $(seq 30); do kill -0 "${pids[@]}" 2>/dev/null || return 0; sleep 0.1; done
  kill -KILL "${pids[@]}" 2>/dev/null || true
}
at_end murder_stop
imap() { local s=$1 user=$2; shift 2; timeout 60 python3 "$murder_client" imap "$(imap_at "$s")" "$user" "$@"; }
lmtp() { local s=$1; shift; timeout 60 python3 "$murder_client" lmtp "$(lmtp_at "$s")" "$@"; }
messages() { local s=$1; shift; timeout 60 python3 "$murder_client" messages "$(imap_at "$s")" "$@"; }
