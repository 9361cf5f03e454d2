# mupdate_cases.sh - what a murder of unmodified Cyrus has to be able to do, whoever is its MUPDATE server. Sourced after mupdate_murder.sh; murder_cases runs them all.
# shellcheck shell=bash disable=SC2154
#
# With directory=stock they run against Cyrus' own master, whose known faults are left out: by that one sees that the cases ask for nothing that Cyrus' clients don't expect.

lines() { printf '%s\n' "$@"; }
as() { local s=$1 user=$2; shift 2; lines "$@" | "${murder_prefix[@]}" timeout 120 python3 "$murder_check" script "$(imap_at "$s")" "$user"; }  # with new connections when the server closes one
stock() { [ "$directory" = stock ]; }

creates() {
  want 0 imap be1 cyrus 'CREATE user/alice' 'CREATE user/alice/A' 'CREATE user/alice/A/B' 'CREATE user/alice/deep/down/er' 'CREATE user/john.doe' 'CREATE user/john.doe/in.box' 'CREATE shared' 'CREATE shared/x'
  holds 'at user.alice be1.test!default' 'at user.alice.deep.down.er be1.test!default' 'at user.john^doe.in^box be1.test!default' 'acl user.alice alice lrswipkxtecdan '
  want 0 imap be2 cyrus 'CREATE user/bob' 'CREATE user/bob/F p2' 'CREATE user/dave@example.com' 'CREATE user/dave/d.d@example.com' 'CREATE user/dave.j@example.com' 'CREATE board@example.com' 'CREATE user/johnny'
  holds 'at user.bob.F be2.test!p2' 'at example.com!user.dave.d^d be2.test!default' 'acl example.com!user.dave dave@example.com lrswipkxtecdan '
  # A name that another server has is refused, and leaves nothing behind on this one.
  want 0 as be2 cyrus '!CREATE user/alice' '!CREATE shared' '!CREATE shared/x' '!CREATE user/john.doe'
  want 0 as be1 cyrus '!CREATE user/bob' '!CREATE board@example.com'
  holds 'at user.alice be1.test!default' 'at shared be1.test!default'
  # By way of the frontend: in somebody's own tree, where the parent is, and where it is told to.
  want 0 imap fe alice 'CREATE INBOX/fe' 'CREATE INBOX/fe/sub' 'STATUS INBOX/fe/sub (MESSAGES)'
  want 0 imap fe bob 'CREATE INBOX/fe' '!STATUS INBOX/none (MESSAGES)'
  want 0 imap fe cyrus 'CREATE byfe be2.test!p2' 'CREATE byfe/sub' 'CREATE default'
  holds 'at user.alice.fe.sub be1.test!default' 'at user.bob.fe be2.test!default' 'at byfe be2.test!p2' 'at default be1.test!default'
  all_agree
}
sharing() {
  want 0 imap be1 cyrus 'SETACL user/alice/A bob lrs' 'SETACL user/alice/A/B anyone lr' 'SETACL shared anyone lrs' 'SETACL shared/x alice lrswi' 'SETACL default -bob lr'
  holds 'acl user.alice.A alice lrswipkxtecdan bob lrs '
  want 0 imap fe alice 'SETACL INBOX/fe bob lr' 'SETACL INBOX/fe dave@example.com lrs' 'GETACL INBOX/fe' 'DELETEACL INBOX/fe dave@example.com'
  holds 'acl user.alice.fe alice lrswipkxtecdan bob lr '
  want 0 imap be1 alice 'SETACL INBOX/fe/sub bob lrs' 'DELETEACL INBOX/fe/sub bob'
  holds 'acl user.alice.fe.sub alice lrswipkxtecdan '
  # All rights taken from all: the mailbox stays.
  want 0 imap be2 cyrus 'SETACL user/bob/F bob ""' 'SETACL user/bob/F cyrus ""'
  holds 'at user.bob.F be2.test!p2'
  want 0 imap be2 cyrus 'SETACL user/bob/F bob lrswipkxtecda'
  all_agree
}
# listed SERVER USER PATTERN: names, one a line
listed() { imap "$1" "$2" "LIST \"\" \"$3\"" | sed -nE 's/^\* LIST \([^)]*\) "." "?([^"\r]*)"?\r?$/\1/p'; }
want_listed() {  # want_listed USER PATTERN NAME...: through the frontend
  local user=$1 pattern=$2 got; shift 2
  got=$(listed fe "$user" "$pattern" | sort)
  want_same "$got" "$(lines "$@" | sort)" "what $user sees of $pattern"
}
lists() {
  # The owner, another user, a user of another domain, an administrator.
  want_listed alice 'INBOX*' INBOX INBOX/A INBOX/A/B INBOX/deep INBOX/deep/down INBOX/deep/down/er INBOX/fe INBOX/fe/sub
  want_listed alice 'shared*' shared shared/x
  want_listed bob 'user/alice*' user/alice/A user/alice/A/B user/alice/fe
  want_listed bob 'INBOX*' INBOX INBOX/F INBOX/fe
  [ -z "$(listed fe bob default)" ] || fail "bob sees what he has no right to"
  want_listed john.doe 'INBOX*' INBOX INBOX/in.box
  want_listed dave@example.com 'INBOX*' INBOX INBOX/d.d
  want_listed cyrus 'user/john*' user/john.doe user/john.doe/in.box user/johnny
  want_listed cyrus 'user/%@example.com' user/dave@example.com user/dave.j@example.com
  want 0 imap fe bob 'SELECT user/alice/A' '!SELECT user/alice/deep/down/er' '!CREATE user/alice/A/mine' 'MYRIGHTS user/alice/A'
}
messages_are() { want_same "$(messages "$1" "$2" "$3")" "$4" "messages in $3 of $2 at $1"; }
# delivered RECIPIENT CODE...: through the proxy, in one transaction
delivers() {
  want 0 lmtp fe alice@test bob@test john.doe@test dave@example.com nobody@test nobody@example.com
  want_text '^alice@test 250'; want_text '^bob@test 250'; want_text '^john\.doe@test 250'; want_text '^dave@example\.com 250'
  want_text '^nobody@test 550'; want_text '^nobody@example\.com 550'
  messages_are be1 alice INBOX 1
  messages_are be2 dave@example.com INBOX 1
  # Into shared mailboxes: by the right p alone.
  want 0 lmtp fe '+shared/x@test'
  want_text '^\+shared/x@test 5[0-9][0-9]'
  want 0 imap be1 cyrus 'SETACL shared/x anyone p'
  frontend_agrees
  want 0 lmtp fe '+shared/x@test' 'alice+A@test'
  want_text '^\+shared/x@test 250'; want_text '^alice\+A@test 250'
  want 0 imap be1 cyrus 'DELETEACL shared/x anyone'
  frontend_agrees
  want 0 lmtp fe '+shared/x@test'
  want_text '^\+shared/x@test 5[0-9][0-9]'
  # What was just made gets mail at once: a proxy that hasn't heard of it asks.
  want 0 imap be2 cyrus 'CREATE user/newborn'
  want 0 lmtp fe newborn@test
  want_text '^newborn@test 250'
}
renames() {
  want 0 imap be1 cyrus 'RENAME user/alice/A user/alice/C'
  holds 'at user.alice.C be1.test!default' 'at user.alice.C.B be1.test!default' 'acl user.alice.C alice lrswipkxtecdan bob lrs ' 'gone user.alice.A' 'gone user.alice.A.B'
  # A user, with mail and folders.
  want 0 imap be2 cyrus 'CREATE user/erin' 'CREATE user/erin/E' 'CREATE user/erin/E/e.e' 'RENAME user/erin user/erin.two'
  holds 'at user.erin^two.E.e^e be2.test!default' 'acl user.erin^two erin.two lrswipkxtecdan ' 'gone user.erin' 'gone user.erin.E'
  want 0 lmtp fe erin.two@test erin@test
  want_text '^erin\.two@test 250'; want_text '^erin@test 550'
  # The partition goes over to the new name; to another partition; back.
  want 0 imap be2 cyrus 'RENAME user/bob/F user/bob/P' 'RENAME user/bob/P user/bob/F'
  holds 'at user.bob.F be2.test!p2'
  want 0 imap be2 cyrus 'RENAME user/bob/F user/bob/F default'
  holds 'at user.bob.F be2.test!default'
  # By way of the frontend, by the owner.
  want 0 imap fe alice 'RENAME INBOX/fe INBOX/few' 'STATUS INBOX/few/sub (MESSAGES)'
  holds 'at user.alice.few.sub be1.test!default'
  want 0 imap fe alice 'RENAME INBOX/few INBOX/fe'
  # Onto a name that another server has: refused, and both stay what they were.
  if ! stock; then
    want 0 as be2 cyrus '!RENAME user/bob/F shared/x'
    holds 'at shared.x be1.test!default' 'at user.bob.F be2.test!default'
    want 0 imap be2 bob 'STATUS INBOX/F (MESSAGES)'
  fi
  all_agree
}
deletes() {
  # Kept as DELETED.* on be1, gone on be2.
  want 0 imap be1 alice 'CREATE INBOX/gone' 'CREATE INBOX/gone/sub' 'DELETE INBOX/gone/sub' 'DELETE INBOX/gone'
  holds 'gone user.alice.gone'
  want 0 imap be2 bob 'CREATE INBOX/gone' 'DELETE INBOX/gone'
  want 0 imap be1 cyrus 'CREATE user/dora' 'CREATE user/dora/D' 'SETACL user/dora cyrus lrswipkxtecda' 'SETACL user/dora/D cyrus lrswipkxtecda' 'DELETE user/dora'
  want 0 imap be2 cyrus 'CREATE user/emil' 'CREATE user/emil/E' 'SETACL user/emil cyrus lrswipkxtecda' 'DELETE user/emil'
  holds 'gone user.dora.D'
  # Cyrus tells nobody of an immediate DELETE: its own ctl_mboxlist -m does.
  want 0 cyrus_tool be2 ctl_mboxlist -m
  holds 'gone user.bob.gone' 'gone user.emil' 'gone user.emil.E'
  want 0 imap fe alice 'CREATE INBOX/short' 'DELETE INBOX/short'
  holds 'gone user.alice.short'
  all_agree
  want_same "$(cut -f1 "$work/rows.directory" | grep -cE '^DELETED\.user\.(alice\.(gone|gone\.sub|short)|dora|dora\.D)\.')" 5 "deleted mailboxes that are kept"
  ! cut -f1 "$work/rows.directory" | grep -E '^DELETED\.user\.(bob|emil)' || fail "what was deleted at once is registered"
  want 0 cyrus_tool be1 cyr_expire -D 0 -E 1
  all_agree
  ! cut -f1 "$work/rows.directory" | grep '^DELETED' || fail "what has expired is registered"
}
moves() {
  want 0 imap be1 cyrus 'CREATE user/carol' 'CREATE user/carol/K' 'CREATE user/carol/K/k.k'
  want 0 lmtp fe carol@test
  want_text '^carol@test 250'
  want 0 imap be1 cyrus 'XFER user/carol be2.test'
  holds 'at user.carol be2.test!default' 'at user.carol.K.k^k be2.test!default'
  messages_are be2 carol INBOX 1
  frontend_agrees
  want 0 lmtp fe carol@test
  want_text '^carol@test 250'
  messages_are fe carol INBOX 2
  want 0 imap be2 cyrus 'XFER user/carol be1.test p2'
  holds 'at user.carol.K be1.test!p2'
  all_agree
  messages_are fe carol INBOX 2
}
by_hand() {  # what an administrator does with single servers
  want 0 imap be1 cyrus 'LOCALCREATE user/loc' 'LOCALCREATE user/loc/sub'
  holds 'gone user.loc'
  want 0 imap be1 cyrus 'MUPDATEPUSH user/loc' 'MUPDATEPUSH user/loc/sub'
  holds 'at user.loc be1.test!default'
  want 0 imap fe loc 'STATUS INBOX/sub (MESSAGES)'
  want 0 imap be2 cyrus 'LOCALCREATE user/twice' 'MUPDATEPUSH user/twice' 'MUPDATEPUSH user/twice'
  holds 'at user.twice be2.test!default'
  # Deleted here and not there.
  want 0 imap be2 cyrus 'SETACL user/twice cyrus lrswipkxtecda' 'LOCALDELETE user/twice'
  holds 'at user.twice be2.test!default'
  want 0 cyrus_tool be2 ctl_mboxlist -m
  holds 'gone user.twice'
  all_agree
}
local_names() { dump_rows "$1" | cut -f1,3; }
# What is missing, too much or wrong in the directory is repaired by the server that has the mailboxes.
repairs() {
  want 0 cyrus_tool be1 ctl_mboxlist -m -w
  stock || [ ! -s "$work/out" ] || fail "be1 and the directory differ: $(head -n 3 "$work/out")"
  local_names be1 >"$work/before"
  want 0 mup DELETE user.loc
  want 0 mup DELETE user.alice.C.B
  want 0 mup ACTIVATE user.ghost be1.test!default $'ghost\tlrs\t'
  want 0 mup ACTIVATE user.john^doe.zombie be1.test!default ''
  want 0 mup ACTIVATE user.alice be1.test!default $'x\tl\t'
  # A dry run says what it would do, and does nothing.
  want 0 cyrus_tool be1 ctl_mboxlist -m -w
  want_text 'user\.loc'; want_text 'user\.ghost'; want_text 'user\.alice'
  holds 'gone user.loc' 'at user.ghost be1.test!default'
  want 0 cyrus_tool be1 ctl_mboxlist -m
  holds 'gone user.ghost' 'gone user.john^doe.zombie' 'at user.loc be1.test!default' 'at user.alice.C.B be1.test!default' 'acl user.alice alice lrswipkxtecdan '
  # Again, with the server's word over the directory's.
  want 0 mup DELETE user.loc.sub
  want 0 mup ACTIVATE user.ghost be1.test!default ''
  want 0 mup ACTIVATE shared be1.test!default ''
  want 0 cyrus_tool be1 ctl_mboxlist -m -a
  holds 'at user.loc.sub be1.test!default' 'gone user.ghost'
  local_names be1 >"$work/after"
  cmp "$work/before" "$work/after" || fail "be1 has lost or won something: $(diff "$work/before" "$work/after" | head -n 3)"
  want 0 cyrus_tool be1 ctl_mboxlist -m -w
  stock || [ ! -s "$work/out" ] || fail "be1 and the directory differ: $(head -n 3 "$work/out")"
  all_agree
}
# Two servers have it: the stock master lets the one that asks wipe it. Nothing may be wiped, and none takes it from the other, whatever ctl_mboxlist is asked to do.
conflicts() {
  want 0 imap be1 cyrus 'CREATE user/twin' 'CREATE user/twin/T' 'CREATE user/only1'
  want 0 lmtp fe twin@test
  local_names be1 >"$work/before1"
  want 0 imap be2 cyrus 'LOCALCREATE user/twinned'
  local_names be2 >"$work/before2"
  # be1 has them, the directory has them at be2; and the other way around.
  local n
  for n in user.twin user.twin.T user.only1; do
    want 0 mup DELETE $n
    want 0 mup ACTIVATE $n be2.test!default $'x\tlrs\t'
  done
  want 0 mup ACTIVATE user.twinned be1.test!default ''
  for n in '-m' '-m -a' '-m -i' '-m -a -i'; do
    # What it answers when asked by -i: yes, wipe everything.
    # shellcheck disable=SC2086
    yes | cyrus_tool be1 ctl_mboxlist $n >"$work/out" 2>"$work/err" || true
    local_names be1 >"$work/after"
    cmp "$work/before1" "$work/after" || fail "ctl_mboxlist $n has changed be1: $(diff "$work/before1" "$work/after" | head -n 3)"
    messages_are be1 twin INBOX 1
  done
  # user.twinned is be1's by the directory only: be1 has withdrawn that, so that be2 may have it.
  want 0 cyrus_tool be2 ctl_mboxlist -m
  local_names be2 >"$work/after"
  cmp "$work/before2" "$work/after" || fail "ctl_mboxlist has changed be2: $(diff "$work/before2" "$work/after" | head -n 3)"
  holds 'at user.twinned be2.test!default'
  # be2 said what it doesn't have; be1 registers what it has.
  holds 'gone user.twin'
  want 0 cyrus_tool be1 ctl_mboxlist -m
  holds 'at user.twin be1.test!default' 'at user.twin.T be1.test!default'
  all_agree
}
# A frontend that has lost its list, or has a wrong one, has the directory's a moment later.
resyncs() {
  local n
  want 0 imap be1 cyrus 'CREATE user/sort' 'CREATE user/sort/a.b' 'CREATE user/sort/a' 'CREATE user/sort/a/b' 'CREATE user/sort/a-b' 'CREATE user/sort/a_' 'CREATE user/sort/q/r' 'CREATE user/sort/q/t' 'CREATE user/sort-er' 'CREATE user/sort.er' \
    'CREATE a.b@example.com' 'CREATE user/zoe@example.com.au'
  murder_stop fe
  rm -f "$murder/fe/mailboxes.db"
  server_start fe
  server_ready fe
  frontend_agrees
  want_listed bob 'INBOX*' INBOX INBOX/F INBOX/fe
  # While it was away: much has come, gone and changed, and its own list has rows that nobody has any more.
  murder_stop fe
  want 0 imap be1 sort 'DELETE INBOX/q/r' 'CREATE INBOX/b' 'RENAME INBOX/q INBOX/s' 'SETACL INBOX/s bob lrs'
  want 0 imap be2 cyrus 'CREATE user/sort.z' 'CREATE user/sort.a@example.com'
  python3 - >"$work/ghosts" <<'X'
import json
e = {}
for n in ["user.aaa", "user.sort^", "user.sort.a^b^c", "zzz", "example.com!user.x"]:
    e[n] = {"name": n, "mtime": "1700000000", "uidvalidity": "1", "createdmodseq": "0", "foldermodseq": "0", "mbtype": "er", "partition": "default", "server": "be9.test", "acl": {"x": "lrs"}, "uniqueid": "id" + str(len(e)), "name_history": []}
print(json.dumps(e))
X
  want 0 cyrus_tool fe ctl_mboxlist -u <"$work/ghosts"
  dump_rows fe | grep "be9\.test" >/dev/null || fail "the frontend didn't take the wrong rows"
  server_start fe
  server_ready fe
  frontend_agrees
  all_agree
}
races() {
  local n won count=25
  "${murder_prefix[@]}" timeout 120 python3 "$murder_check" race "$(imap_at be1)" "$(imap_at be2)" cyrus race- $count >"$work/race" || fail "$(tail -n 1 "$work/race")"
  [ "$(wc -l <"$work/race")" = $count ] || fail "$(head -n 3 "$work/race")"
  ! grep -E 'both|none' "$work/race" || fail "not exactly one has won: $(grep -E -m1 'both|none' "$work/race")"
  frontend_agrees
  while read -r n won; do
    grep -qP "^${n//\//.}\tbe$(if [ "$won" = a ]; then echo 1; else echo 2; fi)\.test!" "$work/rows.directory" || fail "$n isn't at the server that has won it"
  done <"$work/race"
  all_agree
  figure "one name on two backends at once, $count times: be1 has won $(grep -c 'a$' "$work/race"), be2 $(grep -c 'b$' "$work/race")"
}

murder_cases() {
  case_run "$1create" creates
  case_run "$1sharing" sharing
  case_run "$1list" lists
  case_run "$1lmtp" delivers
  case_run "$1rename" renames
  case_run "$1delete" deletes
  case_run "$1xfer" moves
  case_run "$1by_hand" by_hand
  case_run "$1ctl_mboxlist_m" repairs
  stock || case_run "$1conflict" conflicts
  case_run "$1resync" resyncs
  case_run "$1race" races
}
