# kerberos.sh - a Kerberos realm of a test's own: a KDC on loopback, a user, a service, and the SASL library's plugin.
# shellcheck shell=bash disable=SC2154
#
# MIT's KDC and the plugin aren't installed, which would start services and change what other programs offer: the Debian packages are downloaded and unpacked below build/kerberos,
# once. The KDC is a child of the test's, ended by pid.

kerberos_find() {  # 1 with a reason on stderr when there is none
  kerberos_root=$top/build/kerberos/root
  mkdir -p "$top/build"
  (flock 9; kerberos_download) 9>"$top/build/kerberos.lock"
}
kerberos_download() {
  [ ! -e "$top/build/kerberos/done" ] || return 0
  local debs=$top/build/kerberos/debs deb
  rm -rf "$top/build/kerberos"
  mkdir -p "$debs/partial" "$kerberos_root"
  apt-get install -qq -y --reinstall --download-only --no-install-recommends -o Debug::NoLocking=1 -o APT::Sandbox::User="$(id -un)" -o Dir::Cache::archives="$debs" \
    krb5-kdc krb5-admin-server krb5-user libsasl2-modules-gssapi-mit >"$debs/log" 2>&1 || { tail -n 5 "$debs/log" >&2; return 1; }
  for deb in "$debs"/*.deb; do
    case $deb in */libc6_* | */debconf* | */passwd_* | */adduser_*) continue ;; esac
    dpkg-deb -x "$deb" "$kerberos_root" || return 1
  done
  rm -rf "$debs"
  [ -e "$kerberos_root/usr/bin/kinit" ] || ln -s kinit.mit "$kerberos_root/usr/bin/kinit" || return 1 # Debian 13 leaves the short name to its alternatives
  touch "$top/build/kerberos/done"
}
# kerberos_start DIR HOST: a KDC with the users "murder" and "norole", and the service mupdate/HOST, whose key is in DIR/keytab. Exports what programs need to know.
kerberos_start() {
  local dir=$1 host=$2 port try
  kerberos_libs=$(find "$kerberos_root/usr/lib" "$kerberos_root/lib" -maxdepth 2 -name 'lib*.so.*' -printf '%h\n' 2>/dev/null | sort -u | paste -sd:)
  mkdir -p "$dir/sasl2"
  # The library looks in one place: its own plugins and ours together.
  find -L /usr/lib/*/sasl2 "$kerberos_root"/usr/lib/*/sasl2 -maxdepth 1 -name '*.so' -exec ln -sf -t "$dir/sasl2" {} +
  export KRB5_CONFIG=$dir/krb5.conf KRB5_KDC_PROFILE=$dir/kdc.conf KRB5CCNAME=$dir/ccache SASL_PATH=$dir/sasl2
  for try in 1 2 3 4 5 6 7 8 9 10; do
    port=$((20000 + RANDOM % 10000))
    printf '[libdefaults]\n default_realm = TEST.REALM\n dns_lookup_kdc = false\n dns_lookup_realm = false\n rdns = false\n dns_canonicalize_hostname = false\n udp_preference_limit = 1\n[realms]\n TEST.REALM = {\n  kdc = 127.0.0.1:%s\n }\n[domain_realm]\n %s = TEST.REALM\n' \
      $port "$host" >"$KRB5_CONFIG"
    printf '[kdcdefaults]\n kdc_listen = ""\n kdc_tcp_listen = 127.0.0.1:%s\n[realms]\n TEST.REALM = {\n  database_name = %s/principal\n  key_stash_file = %s/stash\n }\n[dbmodules]\n db_module_dir = %s\n[logging]\n kdc = FILE:%s/kdc.log\n' \
      $port "$dir" "$dir" "$(find "$kerberos_root/usr/lib" -type d -path '*/krb5/plugins/kdb')" "$dir" >"$KRB5_KDC_PROFILE"
    if [ $try = 1 ]; then
      kerberos kdb5_util create -s -P master -r TEST.REALM >"$dir/log" 2>&1 || { cat "$dir/log" >&2; return 1; }
      kerberos kadmin.local -r TEST.REALM >>"$dir/log" 2>&1 <<ADMIN || { cat "$dir/log" >&2; return 1; }
addprinc -pw murderpw murder
addprinc -pw norolepw norole
addprinc -randkey mupdate/$host
ktadd -k $dir/keytab mupdate/$host
ADMIN
    fi
    LD_LIBRARY_PATH=$kerberos_libs "$kerberos_root/usr/sbin/krb5kdc" -n >>"$dir/log" 2>&1 &
    kerberos_pid=$!
    sleep 0.3
    if kill -0 $kerberos_pid 2>/dev/null && kerberos_login murder murderpw; then return 0; fi
    kerberos_stop
  done
  cat "$dir/log" "$dir/kdc.log" >&2
  return 1
}
kerberos() { local program=$1; shift; LD_LIBRARY_PATH=$kerberos_libs "$kerberos_root/usr/sbin/$program" "$@"; }
kerberos_login() { printf '%s\n' "$2" | LD_LIBRARY_PATH=$kerberos_libs "$kerberos_root/usr/bin/kinit" "$1@TEST.REALM" >>"${KRB5CCNAME%/*}/log" 2>&1; }
kerberos_stop() { [ -z "${kerberos_pid:-}" ] || kill "$kerberos_pid" 2>/dev/null; wait "${kerberos_pid:-}" 2>/dev/null || true; kerberos_pid=; }
