# mupdate_murder.sh - unmodified Cyrus as a murder on loopback: two backends be1 and be2, a frontend fe, and as their MUPDATE server either raftdir or ("stock") Cyrus' own master.
# Sourced after cluster/lib.sh and cyrus.sh.
# shellcheck shell=bash disable=SC2154
#
# Everything is below $murder ($work/murder). The servers run as nobody when the test is root. Nothing is preloaded but preload_names.so, by which names and ports of this machine's
# servers are found without touching /etc/hosts; $mupdate_host resolves to all nodes, for each server in another order. Passwords: whatever is given is right, but for raftdir's own.
#
# RAFTDIR_TEST_DIRECTORY=stock, and RAFTDIR_TEST_CYRUS="be1=trixie fe=trixie" (whose Cyrus; else this machine's), choose by hand. To be set before murder_setup: mupdate_location (what mupdate_server says),
# cyrus_extra (further lines for all imapd.conf), murder_prefix (a command before each of Cyrus' programs, such as nsenter).

murder=$work/murder
murder_client=$top/tests/interop/preload_client.py
murder_check=$top/tests/interop/mupdate_check.py
directory=${RAFTDIR_TEST_DIRECTORY:-raftdir}
mupdate_host=directory.test mupdate_port=3905
mupdate_location=$mupdate_host:$mupdate_port
mupdate_user=murder mupdate_password=murderpw
cyrus_extra="force_sasl_client_mech: PLAIN"
murder_delete_mode_be2=immediate
murder_prefix=()
servers=(be1 be2 fe)
declare -A suite_of=([be1]="" [be2]="" [fe]="" [master]="")
for setting in ${RAFTDIR_TEST_CYRUS:-}; do suite_of[${setting%%=*}]=${setting#*=}; done
if [ "$(id -u)" = 0 ]; then cyrus_user=nobody; else cyrus_user=$(id -un); fi

free_ports() {  # free_ports N: that many, free at this moment
  python3 -c 'import socket, sys
s = [socket.socket() for _ in range(int(sys.argv[1]))]
for x in s: x.bind(("127.0.0.1", 0))
print(*(x.getsockname()[1] for x in s))' "$1"
}
root_of() {
  local root=$cyrus_root
  [ -z "${suite_of[$1]}" ] || root=$top/build/cyrus-${suite_of[$1]}/root
  # A copy, where Cyrus' user can't get at the checkout (murder_find).
  if [ -n "$root" ] && [ -d "$work/programs$root" ]; then root=$work/programs$root; fi
  echo "$root"
}
# "3.6", "3.10", by the package's version.
version_of() {
  local v
  if [ -n "${suite_of[$1]}" ]; then v=$(cat "$top/build/cyrus-${suite_of[$1]}/done"); else v=$(cyrus_version); fi
  sed -E 's/^([0-9]+\.[0-9]+).*/\1/' <<<"$v"
}
# program SERVER NAME: how that program is started. Another suite's goes through its own dynamic loader.
program() {
  local root loader; root=$(root_of "$1")
  if [ -n "${suite_of[$1]}" ]; then
    loader=$(find "$root/usr/lib64" "$root/usr/lib" -maxdepth 2 -name 'ld-linux*.so.*' -print -quit)
    echo "$loader --library-path $(cyrus_libraries "$root") $root/usr/lib/cyrus/bin/$2"
  else echo "$root/usr/lib/cyrus/bin/$2"; fi
}
imap_at() { cat "$murder/$1.imap"; }
lmtp_at() { cat "$murder/$1.lmtp"; }
mupdate_at() { cat "$murder/$1.mupdate"; }

server_config() {
  local s=$1 d=$murder/$1
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
lmtp_admins: murder cyrus
allowplaintext: yes
allowusermoves: yes
sasl_pwcheck_method: saslauthd
sasl_saslauthd_path: $murder/passwords
sasl_mech_list: PLAIN
partition-default: $d/mail
partition-p2: $d/mail2
defaultpartition: default
mboxlist_db: twoskip
skiplist_unsafe: yes
failedloginpause: 0
autocreate_quota: -1
syslog_prefix: $s
umask: 077
X
  [ "$s" = master ] || cat >>"$d.conf" <<X
mupdate_server: $mupdate_location
mupdate_username: $mupdate_user
mupdate_authname: $mupdate_user
mupdate_password: $mupdate_password
mupdate_retry_delay: 2
proxy_authname: murder
proxy_password: secret
$cyrus_extra
X
  case $s in
    be1) printf 'proxyservers: murder\ndelete_mode: delayed\n' >>"$d.conf" ;;
    be2) printf 'proxyservers: murder\ndelete_mode: %s\n' "$murder_delete_mode_be2" >>"$d.conf" ;;
    fe) printf 'defaultserver: be1.test\nserverlist: be1.test be2.test\n' >>"$d.conf" ;;
    master) printf 'mupdate_connections_max: 256\n' >>"$d.conf" ;;
  esac
  {
    printf 'START {\n  recover cmd="%s -C %s.conf -r"\n}\nSERVICES {\n' "$(program "$s" ctl_cyrusdb)" "$d"
    case $s in
      master) printf '  mupdate cmd="%s -C %s.conf -m" listen="%s" prefork=1 maxforkrate=0\n' "$(program "$s" mupdate)" "$d" "$(mupdate_at "$s")" ;;
      fe) printf '  mupdate cmd="%s -C %s.conf" listen="%s" prefork=1 maxforkrate=0\n' "$(program "$s" mupdate)" "$d" "$(mupdate_at "$s")" ;;
    esac
    if [ "$s" != master ]; then
      printf '  imap cmd="%s -C %s.conf -U 30" listen="%s" prefork=0 maxforkrate=0\n' "$(program "$s" imapd)" "$d" "$(imap_at "$s")"
      printf '  lmtp cmd="%s -C %s.conf -U 30%s" listen="%s" prefork=0 maxforkrate=0\n' "$(program "$s" lmtpd)" "$d" "$([ "$s" != fe ] || echo ' -a')" "$(lmtp_at "$s")"
    fi
    printf '}\nEVENTS {\n}\n'
  } >"$d.cyrus.conf"
}
# server_env SERVER COMMAND...: the environment in which Cyrus' programs run.
server_env() {
  local server=$1 root settings=(); shift
  root=$(root_of "$server")
  if [ -n "$root" ]; then
    settings+=("SASL_PATH=$( (find "$root/usr/lib" "$root/lib" -maxdepth 2 -name sasl2 2>/dev/null || true) | paste -sd:)")
    [ -n "${suite_of[$server]}" ] || settings+=("LD_LIBRARY_PATH=$(cyrus_libraries "$root")")
  fi
  "${murder_prefix[@]}" env "${settings[@]}" CYRUS_USER="$cyrus_user" PRELOAD_NAMES="$murder/$server.names" LD_PRELOAD="$murder/preload_names.so" "$@"
}
# shellcheck disable=SC2046
cyrus_tool() { local s=$1 name=$2; shift 2; server_env "$s" $(program "$s" "$name") -C "$murder/$s.conf" "$@"; }

murder_find() {  # the programs of all servers are there
  local s
  if ! cyrus_find mupdate 2>"$work/why"; then echo "not ok cyrus: its packages could not be fetched: $(tail -n 1 "$work/why")"; exit 1; fi
  for s in "${servers[@]}"; do
    [ -z "${suite_of[$s]}" ] || cyrus_find_suite "${suite_of[$s]}" 2>"$work/why" || return 1
  done
  for s in "${!suite_of[@]}"; do cyrus_within_reach "$(root_of "$s")" >"$work/out" || return 1; done
}
# Each node's address for MUPDATE, one a line: HOST PORT.
mupdate_addresses() { local n v; for n in $(seq 1 "$CLUSTER_NODES"); do v=CLUSTER_MUPDATE_$n; sed 's/:\([0-9]*\)$/ \1/' <<<"${!v}"; done; }
murder_setup() {  # after cluster_start
  local s t ports i n
  [ "$directory" != stock ] || servers=(master be1 be2 fe)
  mkdir -p "$murder"
  chmod 755 "$work" "$murder"
  cp "$build_release/tests/preload_names.so" "$murder/"
  read -r -a ports < <(free_ports $((3 * ${#servers[@]})))
  : >"$murder/names"
  for s in "${servers[@]}"; do
    echo "127.0.0.1:${ports[0]}" >"$murder/$s.imap"
    echo "127.0.0.1:${ports[1]}" >"$murder/$s.lmtp"
    echo "127.0.0.1:${ports[2]}" >"$murder/$s.mupdate"
    printf '%s.test imap 127.0.0.1 %s\n%s.test lmtp 127.0.0.1 %s\n' "$s" "${ports[0]}" "$s" "${ports[1]}" >>"$murder/names"
    ports=("${ports[@]:3}")
  done
  if [ "$directory" = stock ]; then tr ':' ' ' <"$murder/master.mupdate" >"$murder/directory"; else mupdate_addresses >"$murder/directory"; fi
  n=$(wc -l <"$murder/directory")
  i=0
  for s in "${servers[@]}"; do
    { cat "$murder/names"; for ((t = 0; t < n; t++)); do sed -n "$(((i + t) % n + 1))p" "$murder/directory" | sed "s/^/$mupdate_host $mupdate_port /"; done; } >"$murder/$s.names"
    i=$((i + 1))
    server_config "$s"
  done
  if [ "$(id -u)" = 0 ]; then chown -R nobody "$murder"; fi
}
wait_port() {  # wait_port HOST:PORT
  # shellcheck disable=SC2016
  "${murder_prefix[@]}" bash -c 'for _ in $(seq 200); do (exec 3<>"/dev/tcp/${1%:*}/${1#*:}") 2>/dev/null && exit 0; sleep 0.05; done; exit 1' wait "$1"
}
server_start() {
  local s=$1
  # shellcheck disable=SC2046
  server_env "$s" setsid $(program "$s" master) -C "$murder/$s.conf" -M "$murder/$s.cyrus.conf" -p "$murder/$s/master.pid" -D >>"$murder/$s.out" 2>&1 </dev/null &
  echo $! >"$murder/$s.pid"
}
server_ready() { wait_port "$(if [ "$1" = master ]; then mupdate_at "$1"; else imap_at "$1"; fi)" || { cat "$murder/$1.out" >&2; fail "$1 does not start"; }; }
murder_start() {
  local s
  python3 "$murder_client" passwords "$murder/passwords" >"$murder/passwords.log" 2>&1 </dev/null &
  echo $! >"$murder/passwords.pid"
  for _ in $(seq 50); do [ -S "$murder/passwords" ] && break; sleep 0.1; done
  if [ "$directory" = stock ]; then server_start master; server_ready master; fi
  for s in be1 be2 fe; do server_start "$s"; done
  for s in be1 be2 fe; do server_ready "$s"; done
}
# Only our own: the masters that we have started, and their children.
descendants() { local c; for c in $(cat "/proc/$1/task/$1/children" 2>/dev/null); do echo "$c"; descendants "$c"; done; }
murder_stop() {  # murder_stop [SERVER...]
  local s pid pids=()
  [ $# != 0 ] || set -- be1 be2 fe master passwords
  for s in "$@"; do
    pid=$(cat "$murder/$s.pid" 2>/dev/null) || continue
    rm -f "$murder/$s.pid"
    # shellcheck disable=SC2207
    pids+=("$pid" $(descendants "$pid"))
  done
  [ ${#pids[@]} != 0 ] || return 0
  kill -TERM "${pids[@]}" 2>/dev/null || true
  for _ in $(seq 30); do living "${pids[@]}" || return 0; sleep 0.1; done
  kill -KILL "${pids[@]}" 2>/dev/null || true
}
living() { local p; for p in "$@"; do ! kill -0 "$p" 2>/dev/null || return 0; done; return 1; }
at_end murder_stop

imap() { local s=$1 user=$2; shift 2; "${murder_prefix[@]}" timeout 90 python3 "$murder_client" imap "$(imap_at "$s")" "$user" "$@"; }
lmtp() { local s=$1; shift; "${murder_prefix[@]}" timeout 90 python3 "$murder_client" lmtp "$(lmtp_at "$s")" "$@"; }
messages() { local s=$1; shift; "${murder_prefix[@]}" timeout 60 python3 "$murder_client" messages "$(imap_at "$s")" "$@"; }
# mup VERB ARGUMENT...: as a MUPDATE client of the first node that takes it
mupdate_ats() { tr ' ' ':' <"$murder/directory" | paste -sd,; }
mup() { local at; at=$(mupdate_ats); "${murder_prefix[@]}" timeout 60 python3 "$murder_check" mup "$at" "$mupdate_user" "$mupdate_password" "$@"; }

# --- What everybody believes: lines of NAME TAB SERVER!PARTITION TAB ACL TAB active|reserved, in Cyrus' order ---------------------------------
directory_rows() { mup LIST; }
dump_rows() { cyrus_tool "$1" ctl_mboxlist -d | python3 "$murder_check" rows "$1.test"; }
# The frontend has what the directory has, row by row and in the same order: within 15 seconds, since it follows.
frontend_agrees() {
  local deadline=$((SECONDS + ${1:-15}))
  while :; do
    directory_rows >"$work/rows.directory" || fail "the directory gives no list: $(tail -n 1 "$work/rows.directory")"
    dump_rows fe >"$work/rows.fe" || fail "fe gives no list"
    ! cmp -s "$work/rows.directory" "$work/rows.fe" || return 0
    [ $SECONDS -lt $deadline ] || fail "directory (<) and frontend (>) differ: $(diff "$work/rows.directory" "$work/rows.fe" | head -n 6)"
    sleep 0.2
  done
}
# ... and what the backends have themselves, and no more.
all_agree() {
  local s
  frontend_agrees "$@"
  for s in be1 be2; do
    dump_rows "$s" >"$work/rows.$s" || fail "$s gives no list"
    # What was renamed stays without its partition in the stock master.
    if [ "$directory" = stock ]; then sed -i -E 's/!(default|p2)\t/!\t/' "$work/rows.$s" "$work/rows.directory"; fi
    awk -F '\t' -v s="$s.test!" 'index($2, s) == 1' "$work/rows.directory" >"$work/rows.of"
    cmp -s "$work/rows.of" "$work/rows.$s" || fail "directory (<) and $s (>) differ: $(diff "$work/rows.of" "$work/rows.$s" | head -n 6)"
  done
  awk -F '\t' '$2 !~ /^be[12]\.test!/' "$work/rows.directory" >"$work/rows.of"
  [ ! -s "$work/rows.of" ] || fail "the directory has at no backend: $(head -n 3 "$work/rows.of")"
}
# holds 'at NAME SERVER!PARTITION' 'acl NAME ACL' 'gone NAME'...: what the directory says of them
holds() {
  local at; at=$(mupdate_ats)
  want 0 "${murder_prefix[@]}" timeout 60 python3 "$murder_check" holds "$at" "$mupdate_user" "$mupdate_password" "$directory" "$@"
  [ ! -s "$work/out" ] || fail "$(cat "$work/out")"
}
