# lib.sh - for the tests in tests/cluster and tests/interop: `. "$(dirname "$0")/lib.sh"` (bash).
# shellcheck shell=bash disable=SC2034
#
# A test is a list of functions, each run by `case_run NAME FUNCTION` in a subshell under set -e: it prints "ok NAME" or "not ok NAME: why". What a
# case leaves behind for the next one lives in files below $work or in the cluster. At the end every log of every node is read: an error line
# that the test didn't declare (error_expect REGEX), and anything from a sanitizer, is a failed case of its own.
#
# Everything is on loopback, below $work (removed at the end), and only processes of the test's own clusters are signalled.

set -uo pipefail
export LC_ALL=C

test_dir=$(cd "$(dirname "${BASH_SOURCE[1]}")" && pwd)
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
build_release=$top/build
build_asan=$top/build-asan
# Unless a test measures, its nodes run with the sanitizers.
build=${RAFTDIR_TEST_BUILD:-$build_asan}
[ -x "$build/raftdird" ] || build=$build_release
repeat_factor=${RAFTDIR_TEST_REPEAT_FACTOR:-1}
work=$(mktemp -d "${TMPDIR:-/tmp}/raftdir-test.XXXXXX")
unset RAFTDIR_ENDPOINTS RAFTDIR_SITE RAFTDIR_CA RAFTDIR_CERT RAFTDIR_KEY RAFTDIR_LOCAL RAFTDIR_LOCAL_DIR
cases_failed=0
errors_expected=()
cleanups=()

say() { printf '%s\n' "$*" >&2; }
fail() { printf '%s\n' "$*" >"$work/why"; say "    $*"; exit 1; }
figure() { printf 'figure %s\n' "$*"; }   # a measured number, shown by tests/run
skip() { printf 'skip %s: %s\n' "$1" "$2"; }
at_end() { cleanups+=("$1"); }
error_expect() { errors_expected+=("$1"); }

case_run() {
  local name=$1 status t=$SECONDS; shift
  rm -f "$work/why" "$work/skip"
  say "--- $name"
  (
    set -e
    # A case is a process of its own: it finds the cluster that those before it have started.
    [ ! -f "$work/${cluster_name:-c}/cluster" ] || cluster_load
    "$@"
  )
  status=$?
  if [ $status = 0 ]; then printf 'ok %s (%d s)\n' "$name" $((SECONDS - t))
  elif [ $status = 77 ]; then printf 'skip %s: %s\n' "$name" "$(cat "$work/why" 2>/dev/null)"
  else
    printf 'not ok %s: %s\n' "$name" "$(cat "$work/why" 2>/dev/null || echo "a command ended with status $status")"
    cases_failed=$((cases_failed + 1))
  fi
}
case_skip() { printf '%s\n' "$*" >"$work/why"; exit 77; }   # from within a case

# --- Clusters: each has a name, "c" unless it is said -------------------------------------------------------------------------------
cluster() { "$top/deploy/localcluster" --dir "$work/${cluster_name:-c}" "$@"; }
cluster_start() {  # cluster_start [localcluster start's options]: and loads its variables
  cluster start --build "$build" "$@" || return 1
  cluster_load
}
cluster_load() { eval "$(cluster env)"; }
node_unix() { local v=CLUSTER_UNIX_$1; printf '%s\n' "${!v}"; }
node_client() { local v=CLUSTER_CLIENT_$1; printf '%s\n' "${!v}"; }
node_pid() { cluster env | sed -n "s/^CLUSTER_PID_$1=//p" | tr -d "'"; }
node_log() { local v=CLUSTER_LOG_$1; printf '%s\n' "${!v}"; }
node_data() { local v=CLUSTER_DATA_$1; printf '%s\n' "${!v}"; }
node_conf() { local v=CLUSTER_CONF_$1; printf '%s\n' "${!v}"; }

# --- The tools ------------------------------------------------------------------------------------------------------------------------
# A client with sanitizers is slow to start; where times are measured, build=$build_release is set before lib.sh is used.
ctl() { timeout -k 5 120 "$build/raftdirctl" "$@"; }
# That node and no other: without certificates the client can't go on to the TLS endpoints that the node tells it.
ctl_at() { local n=$1; shift; env -u RAFTDIR_ENDPOINTS -u RAFTDIR_CA -u RAFTDIR_CERT -u RAFTDIR_KEY timeout -k 5 120 "$build/raftdirctl" -e "$(node_unix "$n")" "$@"; }
# want STATUS COMMAND...: (STATUS may be a pattern such as [13]) runs it, keeps its output in $work/out and $work/err, and fails the case unless it ends with that status.
want() {
  local wanted=$1 status=0; shift
  "$@" >"$work/out" 2>"$work/err" || status=$?
  # shellcheck disable=SC2053
  [[ $status == $wanted ]] || { cat "$work/out" "$work/err" >&2; fail "status $status instead of $wanted: $*: $(head -c 300 "$work/err")"; }
}
want_text() { grep -qiE -- "$1" "$work/out" "$work/err" || { cat "$work/out" "$work/err" >&2; fail "the output lacks /$1/: $(cat "$work/out" "$work/err" | head -c 300)"; }; }
want_no_text() { ! grep -qiE -- "$1" "$work/out" "$work/err" || fail "the output has /$1/: $(cat "$work/out" "$work/err" | head -c 300)"; }
want_same() { [ "$1" = "$2" ] || fail "$3: \"$1\" is not \"$2\""; }

status_field() { ctl_at "$1" --json --timeout "${3:-5}" cluster status | jq -r ".nodes[0] | $2"; }
# The node number (as localcluster counts) that leads now, by what a majority says: each node is asked, the answer of the highest term counts.
leader() {
  local n best=0 best_term=-1 term state deadline=$((SECONDS + ${1:-15}))
  while [ $SECONDS -lt $deadline ]; do
    best=0 best_term=-1
    for n in $(seq 1 "$CLUSTER_NODES"); do
      [ -n "$(node_pid "$n")" ] || continue
      read -r term state < <(status_field "$n" '"\(.term) \(.state)"' 1 2>/dev/null) || continue
      if [ "${state:-}" = leader ] && [ "$term" -gt "$best_term" ]; then best=$n best_term=$term; fi
    done
    [ "$best" = 0 ] || { echo "$best"; return 0; }
    sleep 0.05
  done
  return 1
}
digest() { status_field "$1" '"\(.published_index) \(.digest)"'; }
# All running nodes reach one index with one digest.
await_equal() {
  local deadline=$((SECONDS + ${1:-30})) n seen
  while :; do
    seen=$(for n in $(seq 1 "$CLUSTER_NODES"); do digest "$n" || true; done | sort -u)
    if [ "$(printf '%s\n' "$seen" | wc -l)" = 1 ] && [[ $seen =~ ^[0-9]+\ [0-9a-f]{32}$ ]]; then return 0; fi
    [ $SECONDS -lt $deadline ] || fail "the nodes' states differ: $(printf '%s' "$seen" | tr '\n' ';')"
    sleep 0.2
  done
}
now_ms() { date +%s%3N; }

# --- Mailboxes -----------------------------------------------------------------------------------------------------------------------------
location='imap01.example.net!p1'
mb_create() { local at=$1 name=$2; shift 2; ctl_at "$at" create "$name" "$location" "$@"; }
sample=$top/deploy/sample/mailboxes.json
dump=$top/tests/data/mailboxes-cyrus-3.6.1.json.gz
# The entries of a dump, one a line, without the commas between them, in the order in which they stand.
entries() { case $1 in *.gz) zcat "$1" ;; *) cat "$1" ;; esac | grep -E '^"' | sed 's/,$//'; }

# --- The end -----------------------------------------------------------------------------------------------------------------------------
finish() {
  local status=$? file pattern lines command=()
  trap - EXIT
  for command in "${cleanups[@]}"; do eval "$command" || true; done
  # A pattern that nothing can match, so that the list is never empty.
  pattern="^\$a"; for file in "${errors_expected[@]}"; do pattern="$pattern|$file"; done
  for file in "$work"/*/n*/log; do
    [ -f "$file" ] || continue
    if lines=$(grep -aE '^[0-9T:.-]+Z error |ERROR: [A-Za-z]*Sanitizer|SUMMARY: [A-Za-z]*Sanitizer|runtime error:|Assertion .* failed' "$file" | grep -avE "$pattern") && [ -n "$lines" ]; then
      printf '%s\n' "$lines" | head -n 20 >&2
      tail -n 40 "$file" >&2
      printf 'not ok log/%s: %s\n' "${file#"$work"/}" "$(printf '%s\n' "$lines" | head -n 1 | cut -c1-200)"
      cases_failed=$((cases_failed + 1))
    fi
  done
  for file in "$work"/*/cluster; do
    [ -f "$file" ] || continue
    if [ -n "${RAFTDIR_TEST_KEEP:-}" ]; then command=(kill all); else command=(destroy); fi
    "$top/deploy/localcluster" --dir "${file%/cluster}" "${command[@]}" || true
  done
  if [ -n "${RAFTDIR_TEST_KEEP:-}" ]; then say "kept: $work"; else rm -rf "$work"; fi
  [ $status = 0 ] || exit $status
  [ $cases_failed = 0 ] || exit 1
  exit 0
}
trap finish EXIT
trap 'exit 130' INT TERM
