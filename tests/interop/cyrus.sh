# cyrus.sh - Cyrus' own programs for the interop tests, without installing Cyrus (which would start its services).
# shellcheck shell=bash disable=SC2154
#
# Where cyrus-common and cyrus-imapd are installed their programs are used. Else the Debian packages are downloaded and unpacked below build/cyrus, once, and the programs
# run from there with LD_LIBRARY_PATH.

cyrus_root=""
cyrus_find() {  # sets cyrus_root; 1 with a reason on stderr when there is none
  local program=/usr/lib/cyrus/bin
  [ ! -x $program/ctl_mboxlist ] || [ ! -x $program/imapd ] || return 0
  cyrus_root=$top/build/cyrus/root
  # Several tests may want it at once: one downloads, the others wait.
  mkdir -p "$top/build"
  (flock 9; cyrus_download) 9>"$top/build/cyrus.lock"
}
cyrus_download() {
  [ ! -s "$top/build/cyrus/done" ] || [ ! -x "$cyrus_root/usr/lib/cyrus/bin/imapd" ] || return 0
  local debs=$top/build/cyrus/debs deb
  rm -rf "$top/build/cyrus"
  mkdir -p "$debs/partial" "$cyrus_root"
  # Only downloads, into our folder: no lock and no root needed. These in any case, of what they need what is missing here.
  apt-get install -qq -y --reinstall --download-only --no-install-recommends -o Debug::NoLocking=1 -o APT::Sandbox::User="$(id -un)" -o Dir::Cache::archives="$debs" \
    cyrus-common cyrus-imapd libsasl2-modules libsasl2-modules-db >"$debs/log" 2>&1 || { tail -n 5 "$debs/log" >&2; return 1; }
  for deb in "$debs"/*.deb; do
    case $deb in */libc6_* | */debconf* | */passwd_* | */adduser_*) continue ;; esac
    dpkg-deb -x "$deb" "$cyrus_root" || return 1
  done
  dpkg-deb -f "$debs"/cyrus-common_*.deb Version >"$top/build/cyrus/version"
  rm -rf "$debs"
  mv "$top/build/cyrus/version" "$top/build/cyrus/done"
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
# Cyrus' programs give up root for $CYRUS_USER.
cyrus() {  # cyrus DIR PROGRAM ARGUMENTS...
  local dir=$1 program=$2 user libs; shift 2
  user=$(id -un)
  [ "$user" != root ] || user=nobody
  # Some of bookworm's libraries are still packaged below /lib.
  libs=$(find "$cyrus_root/usr/lib" "$cyrus_root/lib" -maxdepth 2 -name 'lib*.so.*' -printf '%h\n' 2>/dev/null | sort -u | paste -sd:)
  CYRUS_USER=$user LD_LIBRARY_PATH=${cyrus_root:+$libs} "$cyrus_root/usr/lib/cyrus/bin/$program" -C "$dir/imapd.conf" "$@"
}
