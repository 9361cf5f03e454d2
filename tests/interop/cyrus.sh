# cyrus.sh - Cyrus' own programs for the interop tests, without installing Cyrus (which would start its services).
# shellcheck shell=bash disable=SC2154
#
# Where cyrus-common and cyrus-imapd (and cyrus-murder, for those that ask for it) are installed their programs are used. Else the Debian packages are downloaded and unpacked
# below build/cyrus, once, and the programs run from there with LD_LIBRARY_PATH. Another suite's Cyrus, with all of that suite's libraries, comes below build/cyrus-SUITE, and
# runs by that suite's dynamic loader: no root, chroot or mount is needed for it.

cyrus_root=""
cyrus_find() {  # cyrus_find [PROGRAM...]: sets cyrus_root; 1 with a reason on stderr when there is none
  local bin=/usr/lib/cyrus/bin p missing=no
  for p in ctl_mboxlist imapd "$@"; do [ -x $bin/"$p" ] || missing=yes; done
  [ $missing = yes ] || return 0
  cyrus_root=$top/build/cyrus/root
  # Several tests may want it at once: one downloads, the others wait.
  mkdir -p "$top/build"
  (flock 9; cyrus_download) 9>"$top/build/cyrus.lock"
}
cyrus_download() {
  [ ! -s "$top/build/cyrus/done" ] || [ ! -x "$cyrus_root/usr/lib/cyrus/bin/imapd" ] || [ ! -x "$cyrus_root/usr/lib/cyrus/bin/mupdate" ] || return 0
  local debs=$top/build/cyrus/debs deb
  rm -rf "$top/build/cyrus"
  mkdir -p "$debs/partial" "$cyrus_root"
  # Only downloads, into our folder: no lock and no root needed. These in any case, of what they need what is missing here.
  apt-get install -qq -y --reinstall --download-only --no-install-recommends -o Debug::NoLocking=1 -o APT::Sandbox::User="$(id -un)" -o Dir::Cache::archives="$debs" \
    cyrus-common cyrus-imapd cyrus-murder libsasl2-modules libsasl2-modules-db >"$debs/log" 2>&1 || { tail -n 5 "$debs/log" >&2; return 1; }
  for deb in "$debs"/*.deb; do
    case $deb in */libc6_* | */debconf* | */passwd_* | */adduser_*) continue ;; esac
    dpkg-deb -x "$deb" "$cyrus_root" || return 1
  done
  dpkg-deb -f "$debs"/cyrus-common_*.deb Version >"$top/build/cyrus/version"
  rm -rf "$debs"
  mv "$top/build/cyrus/version" "$top/build/cyrus/done"
}
cyrus_find_suite() {  # cyrus_find_suite SUITE: that Debian suite's, in build/cyrus-SUITE/root; 1 with a reason on stderr
  mkdir -p "$top/build"
  (flock 9; cyrus_download_suite "$1") 9>"$top/build/cyrus-$1.lock"
}
cyrus_download_suite() {
  local suite=$1 dir=$top/build/cyrus-$1 apt packages
  [ ! -s "$dir/done" ] || return 0
  rm -rf "$dir"
  mkdir -p "$dir"/{apt/partial,lists/partial,archives/partial,debs,root}
  # An apt of our own: this machine's Debian mirror with that suite, and nothing installed.
  "$top/deploy/install-packages" entry "$suite" "$dir/apt" || return 1
  : >"$dir/status"
  apt=(-qq -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$dir/apt" -o Dir::State::Lists="$dir/lists" -o Dir::State::status="$dir/status" -o Dir::Cache="$dir" -o Debug::NoLocking=1
    -o APT::Sandbox::User="$(id -un)")
  apt-get "${apt[@]}" update >"$dir/log" 2>&1 || { tail -n 5 "$dir/log" >&2; return 1; }
  # Of what they need only libraries are wanted.
  packages=$(apt-get "${apt[@]}" install --print-uris -y --no-install-recommends cyrus-imapd cyrus-murder libsasl2-modules 2>>"$dir/log" | awk '{ print $2 }' |
    grep -E '^(cyrus-(common|imapd|murder)|lib[^_]*|zlib1g)_' | grep -vE '^lib(perl|clamav|pam-modules|pam-runtime|semanage)' | sed 's/_.*//; s/%2b/+/g') || { tail -n 5 "$dir/log" >&2; return 1; }
  # shellcheck disable=SC2086
  (cd "$dir/debs" && apt-get "${apt[@]}" download $packages >>"$dir/log" 2>&1) || { tail -n 5 "$dir/log" >&2; return 1; }
  for deb in "$dir"/debs/*.deb; do dpkg-deb -x "$deb" "$dir/root" || return 1; done
  [ -x "$dir/root/usr/lib/cyrus/bin/mupdate" ] || { echo "its packages have no mupdate" >&2; return 1; }
  dpkg-deb -f "$dir"/debs/cyrus-common_*.deb Version >"$dir/version"
  rm -rf "$dir"/{apt,lists,archives,debs,status}
  mv "$dir/version" "$dir/done"
}
# A root that Cyrus' user can get at: that one, or a copy below $work when the checkout is below somebody's home.
cyrus_within_reach() {
  if [ -z "$1" ] || [ "$(id -u)" != 0 ] || runuser -u nobody -- test -x "$1/usr/lib/cyrus/bin/imapd"; then echo "$1"; return 0; fi
  if [ ! -d "$work/programs$1" ]; then
    chmod 755 "$work"
    mkdir -p "$work/programs$1"
    cp -a "$1/." "$work/programs$1/" || return 1
  fi
  echo "$work/programs$1"
}
cyrus_version() { if [ -n "$cyrus_root" ]; then cat "$top/build/cyrus/done"; else dpkg-query -W -f '${Version}\n' cyrus-common; fi; }  # as Debian counts: 3.6.1-4+deb12u5
# A configuration with nothing in it but a mailbox list, in $1; without an fsync for each of 29,095 entries.
cyrus_config() {
  local dir=$1 p
  mkdir -p "$dir/conf/db" "$dir/conf/proc" "$dir/conf/log" "$dir/spool"
  {
    printf 'configdirectory: %s/conf\ndefaultpartition: default\nadmins: cyrus\nservername: fe.test\nmboxlist_db: twoskip\nskiplist_unsafe: yes\n' "$dir"
    for p in default p1 p2 p3 p4; do printf 'partition-%s: %s/spool\n' $p "$dir"; done
  } >"$dir/imapd.conf"
  if [ "$(id -u)" = 0 ]; then chown -R nobody "$dir"; fi
}
# Where libraries are below a root. Some of bookworm's are still packaged below /lib.
cyrus_libraries() { (find "$1/usr/lib" "$1/lib" -maxdepth 2 -name "lib*.so.*" -printf "%h\n" 2>/dev/null || true) | sort -u | paste -sd:; }
# Cyrus' programs give up root for $CYRUS_USER.
cyrus() {  # cyrus DIR PROGRAM ARGUMENTS...
  local dir=$1 program=$2 user libs; shift 2
  user=$(id -un)
  [ "$user" != root ] || user=nobody
  libs=$(cyrus_libraries "$cyrus_root")
  CYRUS_USER=$user LD_LIBRARY_PATH=${cyrus_root:+$libs} "$cyrus_root/usr/lib/cyrus/bin/$program" -C "$dir/imapd.conf" "$@"
}
